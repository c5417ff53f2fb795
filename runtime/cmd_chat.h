/* SPDX-License-Identifier: Apache-2.0 */
/* What the verbs that take a conversation share: its options, and the way from them to ids. */
#ifndef RUNTIME_CMD_CHAT_H
#define RUNTIME_CMD_CHAT_H

#include "cmd.h"
#include "stele.h"

struct cmd_chat {
    const char *system, *messages, *date, *template_name;
    struct text_list arguments;
    bool raw, bare, plain, trust_content;
};

extern struct cmd_chat cmd_chat;

/* Lines of an option table. */
#define CMD_CHAT_OPTIONS                                                                                                  \
    {"--system", OPTION_TEXT, &cmd_chat.system, "TEXT", "a system message in front", 0, 0, NULL},                         \
    {"--messages", OPTION_TEXT, &cmd_chat.messages, "FILE|-",                                                             \
     "the conversation as JSON: a list, or an object with messages, tools, documents", 0, 0, NULL},                       \
    {"--arg", OPTION_TEXTS, &cmd_chat.arguments, "NAME=JSON",                                                             \
     "a variable of the chat template: enable_thinking=false; may be repeated", 0, 0, NULL},                              \
    {"--template", OPTION_TEXT, &cmd_chat.template_name, "NAME", "of several chat templates (default: as transformers)",  \
     0, 0, NULL},                                                                                                         \
    {"--date", OPTION_TEXT, &cmd_chat.date, "DATE",                                                                       \
     "YYYY-MM-DD[THH:MM:SS], for the template (default: SOURCE_DATE_EPOCH, else now)", 0, 0, NULL},                       \
    {"--trust-content", OPTION_FLAG, &cmd_chat.trust_content, NULL,                                                       \
     "control tokens spelled in messages are control tokens", 0, 0, NULL}

/* Options of text that goes in as it is. */
#define CMD_RAW_OPTIONS                                                                                                   \
    {"--raw", OPTION_FLAG, &cmd_chat.raw, NULL, "the text as it is, without the model's chat template", 0, 0, NULL},      \
    {"--bare", OPTION_FLAG, &cmd_chat.bare, NULL, "raw text without what the tokenizer puts around it (BOS)", 0, 0,       \
     NULL},                                                                                                               \
    {"--plain", OPTION_FLAG, &cmd_chat.plain, NULL, "raw text in which control tokens are plain text", 0, 0, NULL}

/* Whether an option of CMD_CHAT_OPTIONS is given. */
bool cmd_chat_asked(void);

/* Whether text goes through the model's chat template. STELE_USAGE: options that contradict it. */
enum stele_status cmd_chat_applies(const struct stele_image *image, bool *applies, struct stele_error *err);

/* The conversation that the options and the operand (a user's message; NULL, and no standard input is read, where
 * --messages is given) say, rendered. The caller frees it. */
enum stele_status cmd_chat_render(const struct stele_image *image, const char *operand, struct stele_rendered *out,
                                  struct stele_error *err);

/* The same with a user's message as bytes; NULL: none. The options' date and file of messages are read at the first call
 * and kept. */
enum stele_status cmd_chat_render_text(const struct stele_image *image, const char *text, size_t bytes,
                                       struct stele_rendered *out, struct stele_error *err);

/* The date that templates are given, once something was rendered; else NULL. */
const char *cmd_chat_date(void);

#endif
