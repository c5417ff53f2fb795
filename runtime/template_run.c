/* SPDX-License-Identifier: Apache-2.0 */
/* The machine of chat templates: a stack of values, a chain of frames, and a stack of what has been
 * begun (loops, calls, frames, captures). It never calls itself; whatever an instruction or a table
 * of the program says is checked here, where it is used. */
#include <inttypes.h>

#include "template_object.h"
#include "template_run.h"

enum { STACK_MAX = 16384, BEGUN_MAX = 2048, CALLS_MAX = 250 };

/* Names that were set in a frame. What a pass of a loop set is forgotten with the pass. */
struct binding {
    uint32_t name;
    struct value value;
    struct binding *next;
};

struct frame {
    struct frame *parent; /* NULL: the frame of the whole template, whose names are in globals */
    struct binding *bindings, *spare;
};

enum begun_kind { BEGUN_FRAME, BEGUN_LOOP, BEGUN_CAPTURE, BEGUN_CALL };

struct begun {
    enum begun_kind kind;
    struct frame *frame;  /* to go back to */
    struct loop *loop;    /* BEGUN_LOOP */
    size_t out_start;     /* BEGUN_CAPTURE, BEGUN_CALL */
    uint32_t back, floor; /* BEGUN_CALL: the next instruction, the stack's floor */
};

struct machine {
    struct heap *h;
    const struct template_program *program;
    const struct tm *now;
    const struct template_op *code;
    uint32_t code_count, names, at;
    uint32_t loop_name;    /* of `loop`; `names` where the template never speaks of it */
    struct value *globals; /* [names], VALUE_ABSENT where not set */
    struct frame root, *frame;
    struct value *stack;   /* [STACK_MAX] */
    uint32_t count, floor; /* floor: what the running macro may not touch lies below */
    struct begun *begun;   /* [BEGUN_MAX] */
    uint32_t begun_count, calls;
};

static bool damaged(struct machine *m, const char *what)
{
    return heap_fail(m->h, FAILURE_PROGRAM, "damaged at instruction %" PRIu32 ": %s", m->at, what);
}

/* ------------------------------------------------------------------------------------------- stack
 */

static bool push(struct machine *m, struct value v)
{
    if (m->count == STACK_MAX)
        return heap_fail(m->h, FAILURE_LIMIT, "holds more than %d values at once", STACK_MAX);
    m->stack[m->count++] = v;
    return true;
}

/* The topmost `count` values, taken; NULL where there are fewer. They stay until the next push. */
static struct value *pop(struct machine *m, uint32_t count)
{
    if (count > m->count - m->floor) {
        damaged(m, "takes a value where there is none");
        return NULL;
    }
    m->count -= count;
    return &m->stack[m->count];
}

/* ----------------------------------------------------------------------------------- names, frames
 */

static struct binding *find(struct frame *f, uint32_t name)
{
    struct binding *b = f->bindings;
    while (b && b->name != name)
        b = b->next;
    return b;
}

/* Sets a name in the innermost frame. */
static bool bind(struct machine *m, uint32_t name, struct value v)
{
    struct frame *f = m->frame;
    if (name >= m->names)
        return damaged(m, "a name beyond the table");
    if (!f->parent) {
        m->globals[name] = v;
        return true;
    }
    struct binding *b = find(f, name);
    if (!b) {
        b = f->spare;
        if (b)
            f->spare = b->next;
        else if (!(b = heap_alloc(m->h, 1, sizeof *b)))
            return false;
        *b = (struct binding){.name = name, .next = f->bindings};
        f->bindings = b;
    }
    b->value = v;
    return true;
}

static void forget(struct frame *f)
{
    while (f->bindings) {
        struct binding *b = f->bindings;
        f->bindings = b->next;
        b->next = f->spare;
        f->spare = b;
    }
}

static bool name_text(const struct machine *m, uint32_t name, const char **text, uint32_t *bytes)
{
    const uint32_t *names = template_records(m->program, TABLE_NAMES);
    return name < m->names && template_text(m->program, names[name] & ~NAME_HIDDEN, text, bytes);
}

static bool load(struct machine *m, uint32_t name, struct value *out)
{
    const char *text = "";
    uint32_t bytes = 0, hops = 0;
    if (name >= m->names)
        return damaged(m, "a name beyond the table");
    for (struct frame *f = m->frame; f->parent; f = f->parent, hops++) {
        const struct binding *b = find(f, name);
        if (!b)
            continue;
        *out = b->value;
        if (out->kind == VALUE_ABSENT && name_text(m, name, &text, &bytes))
            *out = value_undefined(WHY_PARAMETER, text, bytes, NULL);
        return heap_spend(m->h, hops / 16);
    }
    *out = m->globals[name];
    if (out->kind == VALUE_ABSENT) {
        if (!name_text(m, name, &text, &bytes))
            return damaged(m, "a name without a text");
        *out = value_undefined(WHY_NAME, text, bytes, NULL);
    }
    return heap_spend(m->h, hops / 16);
}

static struct begun *begin(struct machine *m, enum begun_kind kind)
{
    if (m->begun_count == BEGUN_MAX) {
        heap_fail(m->h, FAILURE_LIMIT, "is more than %d loops and calls deep", BEGUN_MAX);
        return NULL;
    }
    struct begun *b = &m->begun[m->begun_count++];
    *b = (struct begun){.kind = kind, .frame = m->frame, .out_start = m->h->out_length};
    return b;
}

/* A frame inside `parent` becomes the innermost one. */
static bool enter(struct machine *m, struct frame *parent)
{
    struct frame *f = heap_alloc(m->h, 1, sizeof *f);
    if (!f)
        return false;
    *f = (struct frame){.parent = parent};
    m->frame = f;
    return true;
}

/* What was begun last, if it is of that kind; `taken`: it ends. */
static struct begun *last(struct machine *m, enum begun_kind kind, bool taken)
{
    struct begun *b = m->begun_count ? &m->begun[m->begun_count - 1] : NULL;
    if (!b || b->kind != kind) {
        damaged(m, "ends what was not begun");
        return NULL;
    }
    if (taken) {
        m->begun_count--;
        m->frame = b->frame;
    }
    return b;
}

static bool jump(struct machine *m, const struct template_op *op)
{
    int64_t to = (int64_t)m->at + 1 + (int32_t)op->operand;
    if (to < 0 || to >= m->code_count)
        return damaged(m, "a jump beyond the code");
    m->at = (uint32_t)to - 1; /* the machine goes on with the next one */
    return true;
}

/* -------------------------------------------------------------------------------------
 * instructions */

static bool string(struct machine *m, uint32_t index, const char **text, uint32_t *bytes)
{
    return template_text(m->program, index, text, bytes) || damaged(m, "a string beyond the table");
}

static bool constant(struct machine *m, uint32_t index)
{
    const char *text = NULL;
    uint32_t bytes = 0;
    double real;
    if (index >= template_count(m->program, TABLE_CONSTANTS))
        return damaged(m, "a constant beyond the table");
    struct template_constant k =
        ((const struct template_constant *)template_records(m->program, TABLE_CONSTANTS))[index];
    if ((k.kind == CONSTANT_TEXT || k.kind == CONSTANT_BIG) && !string(m, k.string, &text, &bytes))
        return false;
    switch (k.kind) {
    case CONSTANT_NONE:
        return push(m, value_none());
    case CONSTANT_FALSE:
    case CONSTANT_TRUE:
        return push(m, value_bool(k.kind == CONSTANT_TRUE));
    case CONSTANT_INT:
        return push(m, value_int((int64_t)k.bits));
    case CONSTANT_BIG:
        for (uint32_t i = 0; i < bytes; i++)
            if (text[i] < '0' || text[i] > '9')
                return damaged(m, "a number that is none");
        return bytes ? push(m, value_digits(text, bytes)) : damaged(m, "a number without digits");
    case CONSTANT_FLOAT:
        memcpy(&real, &k.bits, sizeof real);
        return push(m, value_float(real));
    case CONSTANT_TEXT:
        return push(m, value_text(text, bytes, ORIGIN_TEMPLATE));
    case CONSTANT_ABSENT:
        return push(m, (struct value){.kind = VALUE_ABSENT});
    case CONSTANT_NOTHING:
        return push(m, value_undefined(WHY_ELSE, "", 0, NULL));
    default:
        return damaged(m, "a constant of no kind");
    }
}

static bool want_space(struct machine *m, uint32_t name, struct value *out)
{
    return load(m, name, out) &&
           (out->kind == VALUE_NAMESPACE ||
            heap_fail(m->h, FAILURE_RUNTIME, "sets an attribute of what is no namespace"));
}

static bool store_field(struct machine *m, const struct template_op *op)
{
    const char *text;
    uint32_t bytes;
    struct value space, *v = pop(m, 1);
    if (!v || !want_space(m, op->count, &space) || !string(m, op->operand, &text, &bytes))
        return false;
    return namespace_set(m->h, space.space, value_text(text, bytes, ORIGIN_TEMPLATE), v);
}

static bool binary(struct machine *m, uint16_t operator)
{
    struct value *v = pop(m, 2), out;
    bool is = false, done;
    if (!v)
        return false;
    switch (operator) {
    case OPERATOR_EQ:
    case OPERATOR_NE:
        done = value_equal(m->h, &v[0], &v[1], &is);
        is = is == (operator== OPERATOR_EQ);
        break;
    case OPERATOR_LT:
    case OPERATOR_LE:
    case OPERATOR_GT:
    case OPERATOR_GE:
        done = value_ordered(m->h, operator, & v[0], &v[1], &is);
        break;
    case OPERATOR_IN:
    case OPERATOR_NOT_IN:
        done = value_in(m->h, &v[0], &v[1], &is);
        is = is == (operator== OPERATOR_IN);
        break;
    default:
        if (!operator|| operator>= OPERATORS)
            return damaged(m, "an operator that is none");
        return value_binary(m->h, operator, & v[0], &v[1], &out) && push(m, out);
    }
    return done && push(m, value_bool(is));
}

static bool concat(struct machine *m, uint32_t count)
{
    struct value *v = pop(m, count), out;
    size_t start = m->h->out_length;
    if (!v)
        return false;
    for (uint32_t i = 0; i < count; i++) {
        if (v[i].kind == VALUE_UNDEFINED && v[i].flag == WHY_UNSAFE)
            return heap_fail_undefined(m->h, &v[i]);
        if (!out_str(m->h, &v[i]))
            return false;
    }
    return out_take(m->h, start, &out) && push(m, out);
}

static bool sequence(struct machine *m, enum value_kind kind, uint32_t count)
{
    const struct value *v = pop(m, count);
    struct value *items = v ? heap_alloc(m->h, count, sizeof *items) : NULL;
    if (!items)
        return false;
    if (count)
        memcpy(items, v, count * sizeof *items);
    return push(m, value_list(kind, items, count));
}

/* A key that comes again gets the later value, and stays where it was. */
static bool dict(struct machine *m, uint32_t count)
{
    const struct value *v = pop(m, count * 2);
    struct entry *entries = v ? heap_alloc(m->h, count, sizeof *entries) : NULL;
    struct value made = {.kind = VALUE_DICT, .entries = entries};
    if (!entries)
        return false;
    for (uint32_t i = 0; i < count; i++) {
        const struct value *key = &v[2 * i], *known = value_find(m->h, &made, key);
        if (m->h->failure)
            return false;
        if (key->kind == VALUE_LIST || key->kind == VALUE_DICT)
            return heap_fail(m->h, FAILURE_TYPE, "'%s' cannot be a key", value_type(key));
        if (known)
            entries[((const char *)known - (const char *)entries) / sizeof *entries].value =
                v[2 * i + 1];
        else
            entries[made.count++] = (struct entry){*key, v[2 * i + 1]};
    }
    return push(m, made);
}

static bool unpack(struct machine *m, uint32_t count)
{
    const struct value *items;
    struct value *v = pop(m, 1);
    uint32_t n;
    if (!v || !value_iterate(m->h, v, &items, &n))
        return false;
    if (n != count)
        return heap_fail(m->h, FAILURE_VALUE,
                         "takes %" PRIu32 " values apart into %" PRIu32 " names", n, count);
    for (uint32_t i = count; i-- > 0;)
        if (!push(m, items[i]))
            return false;
    return true;
}

/* ------------------------------------------------------------------------------------------- loops
 */

static bool begin_loop(struct machine *m, bool selects)
{
    struct value *v = pop(m, 1);
    struct loop *l = v ? heap_alloc(m->h, 1, sizeof *l) : NULL;
    if (!l)
        return false;
    *l = (struct loop){.index = UINT32_MAX, .selects = selects, .changed = {.kind = VALUE_ABSENT}};
    if (!value_iterate(m->h, v, &l->items, &l->count))
        return false;
    if (selects && !(l->kept = heap_alloc(m->h, l->count, sizeof *l->kept)))
        return false;
    struct begun *b = begin(m, BEGUN_LOOP);
    if (!b)
        return false;
    b->loop = l;
    return enter(m, m->frame);
}

static bool next(struct machine *m, const struct template_op *op)
{
    struct begun *b = last(m, BEGUN_LOOP, false);
    if (!b)
        return false;
    struct loop *l = b->loop;
    if (l->index + 1 >= l->count && (l->index != UINT32_MAX || !l->count)) {
        if (l->index != UINT32_MAX)
            l->index = l->count;
        return jump(m, op);
    }
    l->index++;
    forget(m->frame);
    if (!l->selects && m->loop_name < m->names &&
        !bind(m, m->loop_name, (struct value){.kind = VALUE_LOOP, .loop = l}))
        return false;
    return push(m, l->items[l->index]);
}

static bool keep(struct machine *m)
{
    struct begun *b = last(m, BEGUN_LOOP, false);
    struct value *v = pop(m, 2);
    if (!b || !v)
        return false;
    if (!b->loop->selects || b->loop->kept_count == b->loop->count)
        return damaged(m, "keeps too many values");
    if (value_truth(&v[1]))
        b->loop->kept[b->loop->kept_count++] = v[0];
    return true;
}

/* ------------------------------------------------------------------------------------------- calls
 */

static bool make_macro(struct machine *m, uint32_t index)
{
    const struct template_macro *macros = template_records(m->program, TABLE_MACROS);
    struct macro *macro = heap_alloc(m->h, 1, sizeof *macro);
    if (!macro)
        return false;
    if (index >= template_count(m->program, TABLE_MACROS))
        return damaged(m, "a macro beyond the table");
    *macro = (struct macro){.index = index, .frame = m->frame};
    return string(m, macros[index].name, &macro->name, &macro->name_bytes) &&
           push(m, (struct value){.kind = VALUE_MACRO, .macro = macro});
}

/* Bytes of a name that a sentence shows. */
static int shown(uint32_t bytes)
{
    return bytes < 100 ? (int)bytes : 100;
}

/* Sets the special name `name` of a macro that speaks of it. */
static bool bind_special(struct machine *m, const char *name, struct value v)
{
    for (uint32_t i = 0; i < m->names; i++) {
        const char *text;
        uint32_t bytes;
        if (name_text(m, i, &text, &bytes) && bytes == strlen(name) && !memcmp(text, name, bytes))
            return bind(m, i, v);
    }
    return true;
}

/* The arguments by name that no parameter took: a mapping, or one of them is too many. */
static bool bind_rest(struct machine *m, const struct macro *macro, const struct template_macro *t,
                      const struct arguments *a, const bool *taken)
{
    struct entry *entries = heap_alloc(m->h, a->named_count, sizeof *entries);
    struct value rest = {.kind = VALUE_DICT, .entries = entries};
    struct value caller = value_undefined(WHY_NAME, "caller", 6, NULL);
    if (!entries)
        return false;
    for (uint32_t i = 0; i < a->named_count; i++) {
        if (taken[i])
            continue;
        if (t->flags & MACRO_CALLER && value_is_text(&a->names[i], "caller"))
            caller = a->named[i];
        else if (t->flags & MACRO_KWARGS)
            entries[rest.count++] = (struct entry){a->names[i], a->named[i]};
        else
            return heap_fail(m->h, FAILURE_TYPE, "macro '%.*s' has no parameter '%.*s'",
                             shown(macro->name_bytes), macro->name, shown(a->names[i].count),
                             a->names[i].text);
    }
    return (!(t->flags & MACRO_CALLER) || bind_special(m, "caller", caller)) &&
           (!(t->flags & MACRO_KWARGS) || bind_special(m, "kwargs", rest));
}

static bool bind_parameters(struct machine *m, const struct macro *macro,
                            const struct template_macro *t, const struct arguments *a)
{
    const uint32_t *parameters = template_records(m->program, TABLE_PARAMETERS);
    uint32_t room = template_count(m->program, TABLE_PARAMETERS);
    bool taken[UINT8_MAX + 1] = {false};
    if (t->parameter > room || t->parameters > room - t->parameter)
        return damaged(m, "parameters beyond the table");
    for (uint32_t i = 0; i < t->parameters; i++) {
        uint32_t name = parameters[t->parameter + i], bytes;
        struct value v = {.kind = VALUE_ABSENT};
        const char *text;
        if (!name_text(m, name, &text, &bytes))
            return damaged(m, "a parameter without a name");
        if (i < a->count)
            v = a->items[i];
        else
            for (uint32_t j = 0; j < a->named_count; j++)
                if (a->names[j].count == bytes && !memcmp(a->names[j].text, text, bytes)) {
                    v = a->named[j];
                    taken[j] = true;
                }
        if (!bind(m, name, v))
            return false;
    }
    uint32_t more = a->count > t->parameters ? a->count - t->parameters : 0;
    if (more && !(t->flags & MACRO_VARARGS))
        return heap_fail(m->h, FAILURE_TYPE,
                         "macro '%.*s' takes %" PRIu32 " arguments, not %" PRIu32,
                         shown(macro->name_bytes), macro->name, (uint32_t)t->parameters, a->count);
    if (t->flags & MACRO_VARARGS) {
        struct value *items = heap_alloc(m->h, more, sizeof *items);
        if (!items)
            return false;
        if (more)
            memcpy(items, a->items + t->parameters, more * sizeof *items);
        if (!bind_special(m, "varargs", value_list(VALUE_TUPLE, items, more)))
            return false;
    }
    return bind_rest(m, macro, t, a, taken);
}

static bool call_macro(struct machine *m, const struct macro *macro, const struct arguments *a)
{
    struct template_macro t =
        ((const struct template_macro *)template_records(m->program, TABLE_MACROS))[macro->index];
    if (t.entry >= m->code_count)
        return damaged(m, "a macro beyond the code");
    if (m->calls == CALLS_MAX)
        return heap_fail(m->h, FAILURE_LIMIT, "calls macros more than %d deep", CALLS_MAX);
    struct begun *b = begin(m, BEGUN_CALL);
    if (!b)
        return false;
    b->back = m->at;
    b->floor = m->floor;
    m->calls++;
    if (!enter(m, macro->frame) || !bind_parameters(m, macro, &t, a))
        return false;
    m->floor = m->count;
    m->at = t.entry - 1;
    return true;
}

static bool end_call(struct machine *m)
{
    struct value text;
    struct begun *b = last(m, BEGUN_CALL, true);
    if (!b || !out_take(m->h, b->out_start, &text))
        return false;
    m->calls--;
    m->count = m->floor;
    m->floor = b->floor;
    m->at = b->back;
    return push(m, text);
}

static bool call(struct machine *m, const struct template_op *op)
{
    const uint32_t *keywords = template_records(m->program, TABLE_KEYWORDS);
    uint32_t room = template_count(m->program, TABLE_KEYWORDS), count = op->count,
             named = op->keywords;
    struct value names[UINT8_MAX + 1], out, *v = pop(m, 1 + count + named);
    if (!v)
        return false;
    if (named && (op->operand > room || named > room - op->operand))
        return damaged(m, "names of arguments beyond the table");
    for (uint32_t i = 0; i < named; i++) {
        const char *text;
        uint32_t bytes;
        if (!string(m, keywords[op->operand + i], &text, &bytes))
            return false;
        names[i] = value_text(text, bytes, ORIGIN_TEMPLATE);
    }
    struct arguments a = {v + 1, count, names, v + 1 + count, named};
    switch (v->kind) {
    case VALUE_MACRO:
        return call_macro(m, v->macro, &a);
    case VALUE_METHOD:
        return method_call(m->h, v->method, &a, &out) && push(m, out);
    case VALUE_FUNCTION:
        return function_call(m->h, v->count, &a, m->now, &out) && push(m, out);
    case VALUE_UNDEFINED:
        return heap_fail_undefined(m->h, v);
    default:
        return heap_fail(m->h, FAILURE_TYPE, "a value of type '%s' cannot be called",
                         value_type(v));
    }
}

static bool filter_or_test(struct machine *m, const struct template_op *op)
{
    struct value *v = pop(m, 1u + op->count), out;
    bool is;
    if (!v)
        return false;
    if (op->op == OP_FILTER)
        return filter_apply(m->h, op->id, op->operand, v, v + 1, op->count, &out) && push(m, out);
    return test_apply(m->h, op->id, v, v + 1, op->count, &is) && push(m, value_bool(is));
}

static bool rotate(struct machine *m, uint32_t count)
{
    struct value *v = count == 2 || count == 3 ? pop(m, count) : NULL;
    if (!v)
        return damaged(m, "turns too few values");
    struct value top = v[count - 1];
    for (uint32_t i = count - 1; i; i--)
        v[i] = v[i - 1];
    v[0] = top;
    m->count += count;
    return true;
}

/* --------------------------------------------------------------------------------------------- run
 */

static bool step(struct machine *m, const struct template_op *op, bool *end)
{
    const char *text;
    uint32_t bytes;
    struct value *v, out;
    struct begun *b;
    switch (op->op) {
    case OP_END:
        *end = true;
        return m->begun_count ? damaged(m, "ends inside a block") : true;
    case OP_TEXT:
        return string(m, op->operand, &text, &bytes) && heap_spend(m->h, bytes / 64) &&
               out_bytes(m->h, text, bytes, ORIGIN_TEMPLATE);
    case OP_PRINT:
        return (v = pop(m, 1)) && out_str(m->h, v);
    case OP_CONSTANT:
        return constant(m, op->operand);
    case OP_LOAD:
        return load(m, op->operand, &out) && push(m, out);
    case OP_STORE:
        return (v = pop(m, 1)) && bind(m, op->operand, *v);
    case OP_STORE_FIELD:
        return store_field(m, op);
    case OP_FIELD:
        return (v = pop(m, 1)) && string(m, op->operand, &text, &bytes) &&
               object_field(m->h, v, text, bytes, &out) && push(m, out);
    case OP_ITEM:
        return (v = pop(m, 2)) && object_item(m->h, &v[0], &v[1], &out) && push(m, out);
    case OP_SLICE:
        return (v = pop(m, 4)) && object_slice(m->h, &v[0], &v[1], &out) && push(m, out);
    case OP_BINARY:
        return binary(m, op->id);
    case OP_NEGATE:
    case OP_PLUS:
        return (v = pop(m, 1)) && value_negate(m->h, v, op->op == OP_NEGATE, &out) && push(m, out);
    case OP_NOT:
        return (v = pop(m, 1)) && push(m, value_bool(!value_truth(v)));
    case OP_CONCAT:
        return concat(m, op->count);
    case OP_JUMP:
        return jump(m, op);
    case OP_JUMP_IF_NOT:
        return (v = pop(m, 1)) && (value_truth(v) || jump(m, op));
    case OP_AND:
    case OP_OR:
        if (!(v = pop(m, 1)) || value_truth(v) == (op->op == OP_AND))
            return v != NULL;
        m->count++; /* it stays */
        return jump(m, op);
    case OP_LIST:
        return sequence(m, VALUE_LIST, op->count);
    case OP_TUPLE:
        return sequence(m, VALUE_TUPLE, op->count);
    case OP_DICT:
        return dict(m, op->count);
    case OP_CALL:
        return call(m, op);
    case OP_FILTER:
    case OP_TEST:
        return filter_or_test(m, op);
    case OP_DUP:
        if (!(v = pop(m, 1)))
            return false;
        out = *v;
        return push(m, out) && push(m, out);
    case OP_ROT:
        return rotate(m, op->count);
    case OP_POP:
        return pop(m, 1) != NULL;
    case OP_UNPACK:
        return unpack(m, op->count);
    case OP_LOOP:
        return begin_loop(m, op->count != 0);
    case OP_NEXT:
        return next(m, op);
    case OP_LOOP_END:
        return (b = last(m, BEGUN_LOOP, true)) && (!b->loop->passed || jump(m, op));
    case OP_PASS:
        if ((b = last(m, BEGUN_LOOP, false)))
            b->loop->passed = true;
        return b != NULL;
    case OP_KEEP:
        return keep(m);
    case OP_KEPT:
        return (b = last(m, BEGUN_LOOP, true)) &&
               push(m, value_list(VALUE_LIST, b->loop->kept, b->loop->kept_count));
    case OP_FRAME:
        return begin(m, BEGUN_FRAME) && enter(m, m->frame);
    case OP_FRAME_END:
        return last(m, BEGUN_FRAME, true) != NULL;
    case OP_CAPTURE:
        return begin(m, BEGUN_CAPTURE) != NULL;
    case OP_CAPTURE_END:
        return (b = last(m, BEGUN_CAPTURE, true)) && out_take(m->h, b->out_start, &out) &&
               push(m, out);
    case OP_MACRO:
        return make_macro(m, op->operand);
    case OP_GIVEN: {
        const struct binding *given = find(m->frame, op->count);
        return !given || given->value.kind == VALUE_ABSENT || jump(m, op);
    }
    case OP_SPACE:
        return want_space(m, op->operand, &out);
    case OP_RETURN:
        return end_call(m);
    default:
        return damaged(m, "an instruction that is none");
    }
}

/* The globals: functions, then variables over them. */
static bool set_globals(struct machine *m, const struct template_variable *variables, size_t count)
{
    static const struct {
        uint32_t number;
        const char *name;
    } functions[] = {
#define FUNCTION(number, id, name) {number, name},
#include "template.def"
    };
    const uint32_t *names = template_records(m->program, TABLE_NAMES);
    m->loop_name = m->names;
    for (uint32_t i = 0; i < m->names; i++) {
        const char *text;
        uint32_t bytes;
        m->globals[i] = (struct value){.kind = VALUE_ABSENT};
        if (!name_text(m, i, &text, &bytes))
            return damaged(m, "a name without a text");
        if (bytes == 4 && !memcmp(text, "loop", 4))
            m->loop_name = i;
        if (names[i] & NAME_HIDDEN)
            continue;
        for (size_t j = 0; j < sizeof functions / sizeof *functions; j++)
            if (bytes == strlen(functions[j].name) && !memcmp(text, functions[j].name, bytes))
                m->globals[i] =
                    (struct value){.kind = VALUE_FUNCTION, .count = functions[j].number};
        for (size_t j = 0; j < count; j++)
            if (variables[j].name_bytes == bytes && !memcmp(text, variables[j].name, bytes))
                m->globals[i] = variables[j].value;
    }
    return true;
}

struct heap_limits template_limits(void)
{
    return (struct heap_limits){10 * 1000 * 1000, (size_t)256 << 20, (size_t)64 << 20};
}

bool template_run(struct heap *h, const struct template_program *program,
                  const struct template_variable *variables, size_t count, const struct tm *now)
{
    struct machine m = {.h = h,
                        .program = program,
                        .now = now,
                        .code = template_records(program, TABLE_CODE),
                        .code_count = template_count(program, TABLE_CODE),
                        .names = template_count(program, TABLE_NAMES)};
    bool end = false, done = true;
    m.frame = &m.root;
    m.globals = heap_alloc(h, m.names, sizeof *m.globals);
    m.stack = heap_alloc(h, STACK_MAX, sizeof *m.stack);
    m.begun = heap_alloc(h, BEGUN_MAX, sizeof *m.begun);
    if (!m.globals || !m.stack || !m.begun || !set_globals(&m, variables, count))
        return false;
    while (done && !end) {
        if (m.at >= m.code_count)
            return damaged(&m, "the code has no end");
        struct template_op op = m.code[m.at]; /* a copy: the file may change under the mapping */
        h->line = op.line;
        done = heap_spend(h, 1) && step(&m, &op, &end);
        m.at++;
    }
    h->line = 0;
    return done && !h->failure;
}
