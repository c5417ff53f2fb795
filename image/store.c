/* SPDX-License-Identifier: Apache-2.0 */
#include "store.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

bool store_is_reference(const char *word)
{
    static const char *const schemes[] = {"hf:", "s3://", "https://", "http://"};
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++)
        if (!strncasecmp(word, schemes[i], strlen(schemes[i])))
            return true;
    return false;
}

char *store_name(const char *reference)
{
    const char *host = strstr(reference, "://");
    size_t scheme = host ? (size_t)(host - reference) + 3 : 0, end = strcspn(reference, "#");
    bool web = host && !strncasecmp(reference, "http", 4);
    end = web ? strcspn(reference, "?#") : end;
    size_t from = scheme, slash = scheme + strcspn(reference + scheme, "/?#");
    for (size_t i = scheme; web && i < slash; i++) /* behind the last @ of the authority */
        from = reference[i] == '@' ? i + 1 : from;
    while (end > from && reference[end - 1] == '/')
        end--;
    char *name;
    return asprintf(&name, "%.*s%.*s", (int)scheme, reference, (int)(end - from), reference + from) < 0 ? NULL : name;
}

const char *store_weights(const char *reference)
{
    const char *hash = strchr(reference, '#');
    return hash && hash[1] ? hash + 1 : NULL;
}

char *store_path(const char *folder, const char *file)
{
    const char *set = getenv("STELE_HOME"), *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    char *path = NULL;
    int n = -1;
    if (set && *set)
        n = asprintf(&path, "%s/%s/%s", set, folder, file);
    else if (data && *data)
        n = asprintf(&path, "%s/stele/%s/%s", data, folder, file);
    else if (home && *home)
        n = asprintf(&path, "%s/.local/share/stele/%s/%s", home, folder, file);
    return n < 0 ? NULL : path;
}

char *store_reference_file(const char *name, const char *weights)
{
    char *out = malloc(3 * strlen(name) + strlen(weights) + 2), *to = out;
    for (; out && *name; name++)
        if (strchr("-._", *name) || (*name >= '0' && *name <= '9') || (*name >= 'A' && *name <= 'Z') ||
            (*name >= 'a' && *name <= 'z'))
            *to++ = *name;
        else
            to += sprintf(to, "%%%02X", (unsigned char)*name);
    if (out)
        sprintf(to, "#%s", weights);
    return out;
}

bool store_read(struct store_entry *out, const char *file)
{
    char line[1100], *path = store_path("refs", file);
    FILE *from = path ? fopen(path, "re") : NULL;
    free(path);
    if (!from || strlen(file) >= sizeof out->file) {
        if (from)
            fclose(from);
        return false;
    }
    *out = (struct store_entry){0};
    const struct {
        const char *key;
        char *to;
        size_t room;
    } fields[] = {
        {"identity ", out->identity, sizeof out->identity}, {"name ", out->name, sizeof out->name},
        {"weights ", out->weights, sizeof out->weights},    {"revision ", out->revision, sizeof out->revision},
        {"source ", out->source, sizeof out->source},       {"converter ", out->converter, sizeof out->converter},
    };
    strcpy(out->file, file);
    while (fgets(line, sizeof line, from)) {
        line[strcspn(line, "\n")] = '\0';
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
            if (!strncmp(line, fields[i].key, strlen(fields[i].key)))
                snprintf(fields[i].to, fields[i].room, "%s", line + strlen(fields[i].key));
    }
    fclose(from);
    return strlen(out->identity) == 32 && strspn(out->identity, "0123456789abcdef") == 32 && out->name[0] &&
           out->weights[0];
}

void store_each(bool (*each)(void *context, const struct store_entry *entry), void *context)
{
    struct dirent **entries = NULL;
    char *folder = store_path("refs", "");
    int n = folder ? scandir(folder, &entries, NULL, alphasort) : 0;
    bool on = true;
    for (int i = 0; i < n; i++) {
        struct store_entry entry;
        if (on && strchr(entries[i]->d_name, '#') && store_read(&entry, entries[i]->d_name))
            on = each(context, &entry);
        free(entries[i]);
    }
    free(entries);
    free(folder);
}

/* What a search has met: entries of the name, and of the weights if any are asked for. */
struct search {
    const char *name, *weights;
    struct store_entry found;
    size_t count;
    char seen[256]; /* their weights */
};

static bool meet(void *context, const struct store_entry *entry)
{
    struct search *s = context;
    if (strcmp(entry->name, s->name) || (s->weights && strcmp(entry->weights, s->weights)))
        return true;
    size_t n = strlen(s->seen);
    snprintf(s->seen + n, sizeof s->seen - n, "%s#%s", n ? ", " : "", entry->weights);
    s->found = *entry;
    s->count++;
    return true;
}

enum stele_status store_find(const char *reference, char **path, char identity[33], struct stele_error *err)
{
    char *name = store_name(reference), file[64];
    struct search s = {.name = name, .weights = store_weights(reference)};
    enum stele_status status = STELE_OK;
    *path = NULL;
    if (name)
        store_each(meet, &s);
    if (!name)
        status = stele_fail(err, STELE_SYSTEM, "no memory");
    else if (!s.count)
        status = stele_fail(err, STELE_UNREACHABLE,
                            "%s%s%s: the store does not have it; `stele pull` fetches it, `stele ls` "
                            "says what there is",
                            name, s.weights ? "#" : "", s.weights ? s.weights : "");
    else if (s.count > 1)
        status = stele_fail(err, STELE_USAGE,
                            "%s: the store has it with several types of weights; name one behind it: %s", name, s.seen);
    free(name);
    if (status != STELE_OK)
        return status;
    snprintf(file, sizeof file, "%s.stele", s.found.identity);
    memcpy(identity, s.found.identity, 33);
    *path = store_path("images", file);
    return *path ? STELE_OK : stele_fail(err, STELE_SYSTEM, "no memory");
}
