/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd_chat.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct cmd_chat cmd_chat;

static char date_text[32];

/* ---- the date ---- */

/* Noon, where no time is said: no template shows one, and no time zone makes another day of it. Written again it must be
 * what was read: strptime takes more than there is, 30 February and a 60th second among them. */
static enum stele_status read_date(struct tm *now, struct stele_error *err)
{
    char again[32];
    bool timed = strchr(cmd_chat.date, 'T');
    *now = (struct tm){.tm_hour = 12};
    const char *end = timed ? strptime(cmd_chat.date, "%Y-%m-%dT%H:%M:%S", now) : strptime(cmd_chat.date, "%Y-%m-%d", now);
    timegm(now); /* with its day of the week */
    size_t bytes = timed ? strftime(again, sizeof again, "%Y-%m-%dT%H:%M:%S", now)
                         : strftime(again, sizeof again, "%Y-%m-%d", now);
    if (!end || !bytes || strcmp(again, cmd_chat.date))
        return stele_fail(err, STELE_USAGE, "--date takes YYYY-MM-DD, or YYYY-MM-DDTHH:MM:SS, not \"%s\"", cmd_chat.date);
    return STELE_OK;
}

static enum stele_status read_epoch(const char *text, struct tm *now, struct stele_error *err)
{
    char *end;
    errno = 0;
    long long seconds = strtoll(text, &end, 10);
    time_t time = seconds;
    if (!*text || *end || errno || !gmtime_r(&time, now))
        return stele_fail(err, STELE_USAGE, "SOURCE_DATE_EPOCH is \"%s\", not seconds since 1970", text);
    return STELE_OK;
}

static enum stele_status choose_date(struct tm *now, struct stele_error *err)
{
    const char *epoch = getenv("SOURCE_DATE_EPOCH");
    time_t seconds = time(NULL);
    enum stele_status status = STELE_OK;
    if (cmd_chat.date)
        status = read_date(now, err);
    else if (epoch)
        status = read_epoch(epoch, now, err);
    else
        localtime_r(&seconds, now);
    if (status == STELE_OK)
        strftime(date_text, sizeof date_text, "%Y-%m-%dT%H:%M:%S", now);
    return status;
}

const char *cmd_chat_date(void)
{
    return *date_text ? date_text : NULL;
}

/* ---- the conversation ---- */

/* An option that is given, of those for conversations (`chat`) or of those for raw text; else NULL. */
static const char *given(bool chat)
{
    const struct {
        bool set, chat;
        const char *name;
    } options[] = {
        {cmd_chat.system, true, "--system"},     {cmd_chat.messages, true, "--messages"},
        {cmd_chat.date, true, "--date"},         {cmd_chat.template_name, true, "--template"},
        {cmd_chat.arguments.count, true, "--arg"}, {cmd_chat.trust_content, true, "--trust-content"},
        {cmd_chat.bare, false, "--bare"},        {cmd_chat.plain, false, "--plain"},
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (options[i].set && options[i].chat == chat)
            return options[i].name;
    return NULL;
}

bool cmd_chat_asked(void)
{
    return given(true);
}

enum stele_status cmd_chat_applies(const struct stele_image *image, bool *applies, struct stele_error *err)
{
    *applies = stele_has_template(image) && !cmd_chat.raw;
    const char *wrong = given(!*applies);
    if (!wrong)
        return STELE_OK;
    if (*applies)
        return stele_fail(err, STELE_USAGE, "%s is for text that goes in as it is; --raw says so", wrong);
    return stele_fail(err, STELE_USAGE, "%s is for the chat template, and %s", wrong,
                      cmd_chat.raw ? "this is raw" : "the model has none");
}

static enum stele_status read_messages(char **out, size_t *bytes, struct stele_error *err)
{
    *out = NULL;
    *bytes = 0;
    if (!cmd_chat.messages)
        return STELE_OK;
    if (!strcmp(cmd_chat.messages, "-"))
        return cmd_read_all(STDIN_FILENO, "standard input", out, bytes, err);
    return cmd_read_file(cmd_chat.messages, out, bytes, err);
}

/* What every rendering of this process shares. */
static struct {
    bool read;
    struct tm now;
    char *messages; /* NULL: none */
    size_t bytes;
} shared;

static enum stele_status read_shared(struct stele_error *err)
{
    if (shared.read)
        return STELE_OK;
    enum stele_status status = choose_date(&shared.now, err);
    if (status == STELE_OK)
        status = read_messages(&shared.messages, &shared.bytes, err);
    shared.read = status == STELE_OK;
    return status;
}

enum stele_status cmd_chat_render_text(const struct stele_image *image, const char *text, size_t bytes,
                                       struct stele_rendered *out, struct stele_error *err)
{
    *out = (struct stele_rendered){0};
    enum stele_status status = read_shared(err);
    struct stele_chat chat = {
        .json = shared.messages,
        .json_bytes = shared.bytes,
        .json_name = cmd_chat.messages && strcmp(cmd_chat.messages, "-") ? cmd_chat.messages : "standard input",
        .system = cmd_chat.system,
        .system_bytes = cmd_chat.system ? strlen(cmd_chat.system) : 0,
        .user = text,
        .user_bytes = bytes,
        .arguments = cmd_chat.arguments.items,
        .argument_count = cmd_chat.arguments.count,
        .template_name = cmd_chat.template_name,
        .now = &shared.now,
    };
    return status == STELE_OK ? stele_render(out, image, &chat, err) : status;
}

enum stele_status cmd_chat_render(const struct stele_image *image, const char *operand, struct stele_rendered *out,
                                  struct stele_error *err)
{
    const char *text = NULL;
    char *owned = NULL;
    size_t bytes = 0;
    enum stele_status status = STELE_OK;
    *out = (struct stele_rendered){0};
    if (operand && !strcmp(operand, "-") && cmd_chat.messages && !strcmp(cmd_chat.messages, "-"))
        return stele_fail(err, STELE_USAGE, "the messages and the prompt cannot both be standard input");
    if (operand || !cmd_chat.messages)
        status = cmd_text(operand, "prompt", &text, &bytes, &owned, err);
    if (status == STELE_OK)
        status = cmd_chat_render_text(image, text, bytes, out, err);
    free(owned);
    return status;
}
