/* Proton C on strings: each line of standard input is a step, each line printed its answer.
 *
 * The steps are described in tests/clients/README.md. One thread does all: between two steps, and
 * while a step waits, it hands Proton's events to `happened`. What a step changes is written when
 * the connection is woken (`wait_for`).
 */
#define _GNU_SOURCE
#include <jansson.h>
#include <poll.h>
#include <proton/condition.h>
#include <proton/connection.h>
#include <proton/delivery.h>
#include <proton/event.h>
#include <proton/link.h>
#include <proton/message.h>
#include <proton/proactor.h>
#include <proton/sasl.h>
#include <proton/session.h>
#include <proton/ssl.h>
#include <proton/terminus.h>
#include <proton/transport.h>
#include <proton/version.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINKS_MAX 16
#define DELIVERIES_MAX 64
#define NAME_MAX_BYTES 64

/* A delivery that came or was sent, by the name that a test gives it. */
struct named {
  char name[NAME_MAX_BYTES];
  pn_delivery_t *delivery;
};

/* A link and, of a receiver, what came and nobody took. */
struct opened {
  char name[NAME_MAX_BYTES];
  pn_link_t *link;
  pn_delivery_t *came[DELIVERIES_MAX];
  pn_rwbytes_t bytes[DELIVERIES_MAX];
  size_t count;
};

static pn_proactor_t *proactor;
static pn_connection_t *connection;
static pn_session_t *session;
static char failure[512];
static struct opened links[LINKS_MAX];
static struct named deliveries[DELIVERIES_MAX];
static size_t deliveries_count;
static unsigned tags;

static void die(const char *why) {
  fprintf(stderr, "proton-c: %s\n", why);
  exit(1);
}

static json_t *refused(const char *condition, const char *description) {
  return json_pack("{s:{s:s, s:s}}", "error", "condition", condition ? condition : "none",
                   "description", description ? description : "");
}

static json_t *refused_by(pn_condition_t *said) {
  return refused(pn_condition_get_name(said), pn_condition_get_description(said));
}

/* ---- What Proton tells ---- */

static struct opened *opened_as(const char *name) {
  for (size_t at = 0; at < LINKS_MAX; at++) {
    if (links[at].link && strcmp(links[at].name, name) == 0) {
      return &links[at];
    }
  }
  return NULL;
}

static void came(pn_delivery_t *delivery) {
  pn_link_t *link = pn_delivery_link(delivery);
  if (!pn_link_is_receiver(link) || !pn_delivery_readable(delivery) ||
      pn_delivery_partial(delivery)) {
    return;
  }
  struct opened *receiver = opened_as(pn_link_name(link));
  if (!receiver || receiver->count == DELIVERIES_MAX) {
    die("a delivery that nobody waits for");
  }
  size_t size = pn_delivery_pending(delivery);
  char *start = malloc(size);
  if (!start || pn_link_recv(link, start, size) != (ssize_t)size) {
    die("a delivery can't be read");
  }
  pn_link_advance(link);
  receiver->came[receiver->count] = delivery;
  receiver->bytes[receiver->count] = pn_rwbytes(size, start);
  receiver->count++;
}

static void remember(pn_condition_t *condition) {
  if (pn_condition_is_set(condition)) {
    snprintf(failure, sizeof failure, "%s: %s", pn_condition_get_name(condition),
             pn_condition_get_description(condition));
  }
}

static void happened(pn_event_t *event) {
  switch (pn_event_type(event)) {
  case PN_DELIVERY:
    came(pn_event_delivery(event));
    break;
  case PN_CONNECTION_REMOTE_CLOSE:
    remember(pn_connection_remote_condition(pn_event_connection(event)));
    pn_connection_close(pn_event_connection(event));
    break;
  case PN_TRANSPORT_CLOSED:
    remember(pn_transport_condition(pn_event_transport(event)));
    if (pn_event_connection(event) == connection) {
      connection = NULL; /* Proton frees it. */
    }
    break;
  default:
    break;
  }
}

static void work(void) {
  pn_event_batch_t *batch;
  while ((batch = pn_proactor_get(proactor)) != NULL) {
    pn_event_t *event;
    while ((event = pn_event_batch_next(batch)) != NULL) {
      happened(event);
    }
    pn_proactor_done(proactor, batch);
  }
  usleep(1000);
}

static long now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---- What a step says ---- */

static const char *text_of(json_t *step, const char *name) {
  return json_string_value(json_object_get(step, name));
}

static long number_of(json_t *step, const char *name, long otherwise) {
  json_t *value = json_object_get(step, name);
  return value ? (long)json_integer_value(value) : otherwise;
}

static bool is(json_t *step, const char *name) {
  return json_is_true(json_object_get(step, name));
}

/* What a step can wait for; it also ends when the connection is gone. */
typedef bool (*condition_t)(void *of);

static bool wait_for(condition_t holds, void *of, json_t *step) {
  long deadline = now_ms() + number_of(step, "within_ms", 10000);
  if (connection) {
    pn_connection_wake(connection);
  }
  while (connection && !holds(of) && now_ms() < deadline) {
    work();
  }
  return connection && holds(of);
}

static bool is_open(void *of) {
  (void)of;
  return pn_connection_state(connection) & PN_REMOTE_ACTIVE;
}

static bool never(void *of) {
  (void)of;
  return false;
}

static bool is_refused(void *of) {
  return pn_link_state(of) & PN_REMOTE_CLOSED;
}

static bool is_answered(void *of) {
  return pn_link_state(of) & (PN_REMOTE_ACTIVE | PN_REMOTE_CLOSED);
}

static bool can_send(void *of) {
  return pn_link_credit(of) > 0 || is_refused(of);
}

static bool has_outcome(void *of) {
  return pn_delivery_remote_state(of) != 0;
}

static bool is_drained(void *of) {
  return pn_link_credit(of) == 0 && !pn_link_draining(of);
}

struct wanted {
  struct opened *receiver;
  size_t count;
};

static bool has_come(void *of) {
  struct wanted *wanted = of;
  return wanted->receiver->count >= wanted->count;
}

/* ---- The steps ---- */

static json_t *do_about(json_t *step) {
  (void)step;
  return json_pack("{s:o}", "version",
                   json_sprintf("%d.%d.%d", PN_VERSION_MAJOR, PN_VERSION_MINOR, PN_VERSION_POINT));
}

static void forget_all(void) {
  for (size_t at = 0; at < LINKS_MAX; at++) {
    for (size_t message = 0; message < links[at].count; message++) {
      free(links[at].bytes[message].start);
    }
  }
  memset(links, 0, sizeof links);
  deliveries_count = 0;
}

static json_t *do_close(json_t *step) {
  if (connection) {
    pn_connection_close(connection);
    wait_for(never, NULL, step);
  }
  forget_all();
  return json_pack("{s:b}", "answered", connection == NULL);
}

static void trust(pn_transport_t *transport, const char *ca) {
  pn_ssl_domain_t *domain = pn_ssl_domain(PN_SSL_MODE_CLIENT);
  pn_ssl_t *ssl = pn_ssl(transport);
  if (pn_ssl_domain_set_trusted_ca_db(domain, ca) ||
      pn_ssl_domain_set_peer_authentication(domain, PN_SSL_VERIFY_PEER_NAME, NULL) ||
      pn_ssl_init(ssl, domain, NULL)) {
    die("TLS can't be set up");
  }
  pn_ssl_domain_free(domain);
}

static json_t *do_connect(json_t *step) {
  if (json_object_get(step, "failover")) {
    return json_pack("{s:s}", "lacks",
                     "the proactor of Proton C connects once; the program makes connection, session"
                     " and links anew");
  }
  json_decref(do_close(step));
  failure[0] = '\0';
  connection = pn_connection();
  pn_transport_t *transport = pn_transport();
  pn_connection_set_container(connection, "proton-c");
  pn_connection_set_hostname(connection, "localhost");
  if (text_of(step, "tls_ca")) {
    trust(transport, text_of(step, "tls_ca"));
  }
  pn_sasl_allowed_mechs(pn_sasl(transport), "ANONYMOUS");
  pn_transport_set_idle_timeout(transport, (pn_millis_t)number_of(step, "idle_ms", 0));
  char address[64];
  snprintf(address, sizeof address, "127.0.0.1:%ld", number_of(step, "port", 0));
  pn_connection_open(connection);
  session = pn_session(connection);
  pn_session_open(session);
  pn_proactor_connect2(proactor, connection, transport, address);
  if (!wait_for(is_open, NULL, step)) {
    return refused("none", failure[0] ? failure : "no answer");
  }
  return json_object();
}

static json_t *open_link(pn_link_t *link, json_t *step, long credit) {
  struct opened *place = NULL;
  for (size_t at = 0; at < LINKS_MAX && !place; at++) {
    place = links[at].link ? NULL : &links[at];
  }
  if (!place) {
    die("too many links");
  }
  memset(place, 0, sizeof *place);
  snprintf(place->name, sizeof place->name, "%s", text_of(step, "name"));
  place->link = link;
  pn_link_open(link);
  if (credit > 0) {
    pn_link_flow(link, (int)credit);
  }
  wait_for(is_answered, link, step);
  pn_terminus_t *ours = pn_link_is_sender(link) ? pn_link_remote_target(link)
                                                : pn_link_remote_source(link);
  if (connection && !pn_terminus_get_address(ours)) {
    wait_for(is_refused, link, step); /* The attach has no terminus, and the detach follows. */
  }
  if (!connection) {
    return refused("none", failure);
  }
  if (is_refused(link)) {
    return refused_by(pn_link_remote_condition(link));
  }
  return json_pack("{s:s}", "address", pn_terminus_get_address(ours));
}

static json_t *do_sender(json_t *step) {
  pn_link_t *link = pn_sender(session, text_of(step, "name"));
  pn_terminus_set_address(pn_link_target(link), text_of(step, "to"));
  return open_link(link, step, 0);
}

static json_t *do_receiver(json_t *step) {
  pn_link_t *link = pn_receiver(session, text_of(step, "name"));
  pn_terminus_t *source = pn_link_source(link);
  if (is(step, "dynamic")) {
    pn_terminus_set_dynamic(source, true);
  } else {
    pn_terminus_set_address(source, text_of(step, "from"));
  }
  if (is(step, "copy")) {
    pn_terminus_set_distribution_mode(source, PN_DIST_MODE_COPY);
  }
  return open_link(link, step, number_of(step, "credit", 0));
}

/* Two hexadecimal digits a byte, either way. */
static pn_rwbytes_t bytes_of(const char *hex) {
  size_t size = strlen(hex) / 2;
  char *bytes = malloc(size);
  for (size_t at = 0; bytes && at < size; at++) {
    char digits[3] = {hex[2 * at], hex[2 * at + 1], '\0'};
    bytes[at] = (char)strtoul(digits, NULL, 16);
  }
  return pn_rwbytes(size, bytes);
}

static json_t *hex_of(pn_bytes_t bytes) {
  static const char digits[] = "0123456789abcdef";
  char *hex = malloc(2 * bytes.size + 1);
  for (size_t at = 0; hex && at < bytes.size; at++) {
    unsigned char byte = (unsigned char)bytes.start[at];
    hex[2 * at] = digits[byte >> 4];
    hex[2 * at + 1] = digits[byte & 15];
  }
  json_t *text = json_stringn(hex, 2 * bytes.size);
  free(hex);
  return text;
}

static pn_message_t *made(json_t *step) {
  pn_message_t *message = pn_message();
  if (text_of(step, "text")) {
    const char *text = text_of(step, "text");
    pn_data_put_string(pn_message_body(message), pn_bytes(strlen(text), text));
  } else {
    pn_rwbytes_t body = bytes_of(text_of(step, "body"));
    pn_message_set_inferred(message, true);
    pn_data_put_binary(pn_message_body(message), pn_bytes(body.size, body.start));
    free(body.start);
  }
  pn_message_set_durable(message, is(step, "durable"));
  pn_message_set_reply_to(message, text_of(step, "reply_to"));
  const char *correlation = text_of(step, "correlation");
  if (correlation) {
    pn_data_put_string(pn_message_correlation_id(message),
                       pn_bytes(strlen(correlation), correlation));
  }
  return message;
}

static const char *outcome_name(uint64_t state) {
  switch (state) {
  case PN_ACCEPTED:
    return "accepted";
  case PN_REJECTED:
    return "rejected";
  case PN_RELEASED:
    return "released";
  case PN_MODIFIED:
    return "modified";
  default:
    return "none";
  }
}

static json_t *do_send(json_t *step) {
  pn_link_t *link = opened_as(text_of(step, "name"))->link;
  if (!wait_for(can_send, link, step)) {
    return refused("none", "no credit");
  }
  if (is_refused(link)) {
    return refused_by(pn_link_remote_condition(link));
  }
  char tag[16];
  snprintf(tag, sizeof tag, "t%u", ++tags);
  pn_delivery_t *delivery = pn_delivery(link, pn_dtag(tag, strlen(tag)));
  pn_message_t *message = made(step);
  pn_rwbytes_t buffer = pn_rwbytes_null;
  ssize_t sent = pn_message_send(message, link, &buffer);
  free(buffer.start);
  pn_message_free(message);
  if (sent < 0) {
    return refused("none", "the message can't be encoded");
  }
  wait_for(has_outcome, delivery, step);
  if (!connection) {
    return refused("none", failure);
  }
  json_t *answer = json_pack("{s:s}", "state", outcome_name(pn_delivery_remote_state(delivery)));
  pn_delivery_settle(delivery);
  return answer;
}

/* A string or symbol as text; what is neither, as Proton shows it. */
static json_t *value_of(pn_data_t *data) {
  pn_bytes_t bytes;
  switch (pn_data_type(data)) {
  case PN_STRING:
    bytes = pn_data_get_string(data);
    return json_stringn(bytes.start, bytes.size);
  case PN_SYMBOL:
    bytes = pn_data_get_symbol(data);
    return json_stringn(bytes.start, bytes.size);
  default:
    return json_string(pn_type_name(pn_data_type(data)));
  }
}

static json_t *annotations_of(pn_message_t *message) {
  json_t *annotations = json_object();
  pn_data_t *data = pn_message_annotations(message);
  pn_data_rewind(data);
  if (pn_data_next(data) && pn_data_type(data) == PN_MAP) {
    pn_data_enter(data);
    while (pn_data_next(data)) {
      json_t *name = value_of(data);
      if (pn_data_next(data)) {
        json_object_set_new(annotations, json_string_value(name), value_of(data));
      }
      json_decref(name);
    }
  }
  return annotations;
}

static json_t *shown(pn_rwbytes_t bytes) {
  pn_message_t *message = pn_message();
  if (pn_message_decode(message, bytes.start, bytes.size)) {
    die("a message can't be decoded");
  }
  json_t *shown = json_object();
  json_object_set_new(shown, "annotations", annotations_of(message));
  const char *reply_to = pn_message_get_reply_to(message);
  json_object_set_new(shown, "reply_to", reply_to ? json_string(reply_to) : json_null());
  pn_data_t *correlation = pn_message_correlation_id(message);
  pn_data_rewind(correlation);
  bool correlated = pn_data_next(correlation) && pn_data_type(correlation) == PN_STRING;
  json_object_set_new(shown, "correlation", correlated ? value_of(correlation) : json_null());
  pn_data_t *body = pn_message_body(message);
  pn_data_rewind(body);
  if (pn_data_next(body) && pn_data_type(body) == PN_STRING) {
    json_object_set_new(shown, "text", value_of(body));
  } else {
    json_object_set_new(shown, "body", hex_of(pn_data_get_binary(body)));
  }
  pn_message_free(message);
  return shown;
}

static json_t *do_take(json_t *step) {
  const char *name = text_of(step, "name");
  struct opened *receiver = opened_as(name);
  struct wanted wanted = {receiver, (size_t)number_of(step, "count", 1)};
  wait_for(has_come, &wanted, step);
  json_t *messages = json_array();
  for (size_t at = 0; at < receiver->count; at++) {
    json_array_append_new(messages, shown(receiver->bytes[at]));
    free(receiver->bytes[at].start);
    struct named *place = &deliveries[deliveries_count++ % DELIVERIES_MAX];
    snprintf(place->name, sizeof place->name, "%s:%zu", name, at);
    place->delivery = receiver->came[at];
  }
  receiver->count = 0;
  return json_pack("{s:o}", "messages", messages);
}

static json_t *do_settle(json_t *step) {
  const char *outcome = text_of(step, "outcome");
  const uint64_t states[] = {PN_ACCEPTED, PN_REJECTED, PN_RELEASED};
  /* The last one of that name. */
  size_t first = deliveries_count > DELIVERIES_MAX ? deliveries_count - DELIVERIES_MAX : 0;
  for (size_t at = deliveries_count; at > first; at--) {
    struct named *named = &deliveries[(at - 1) % DELIVERIES_MAX];
    if (strcmp(named->name, text_of(step, "delivery")) != 0) {
      continue;
    }
    for (size_t state = 0; state < sizeof states / sizeof *states; state++) {
      if (strcmp(outcome, outcome_name(states[state])) == 0) {
        pn_delivery_update(named->delivery, states[state]);
        pn_delivery_settle(named->delivery);
        pn_connection_wake(connection);
        return json_object();
      }
    }
  }
  return refused("none", "no such delivery or outcome");
}

static json_t *do_drain(json_t *step) {
  pn_link_t *link = opened_as(text_of(step, "name"))->link;
  pn_link_drain(link, (int)number_of(step, "credit", 0));
  bool done = wait_for(is_drained, link, step);
  return json_pack("{s:b}", "done", done);
}

static json_t *do_detach(json_t *step) {
  struct opened *place = opened_as(text_of(step, "name"));
  pn_link_t *link = place->link;
  pn_link_close(link);
  bool answered = wait_for(is_refused, link, step);
  pn_link_free(link);
  place->link = NULL;
  return json_pack("{s:b}", "answered", answered);
}

static json_t *do_idle(json_t *step) {
  json_t *within = json_pack("{s:I}", "within_ms", (json_int_t)number_of(step, "ms", 0));
  wait_for(never, NULL, within);
  json_decref(within);
  return json_pack("{s:b}", "open", connection != NULL);
}

static const struct {
  const char *name;
  json_t *(*does)(json_t *step);
} steps[] = {
    {"about", do_about},   {"connect", do_connect}, {"sender", do_sender}, {"receiver", do_receiver},
    {"send", do_send},     {"take", do_take},       {"settle", do_settle}, {"drain", do_drain},
    {"detach", do_detach}, {"close", do_close},     {"idle", do_idle},
};

static json_t *answer(json_t *step) {
  const char *name = text_of(step, "do");
  for (size_t at = 0; name && at < sizeof steps / sizeof *steps; at++) {
    if (strcmp(steps[at].name, name) == 0) {
      return steps[at].does(step);
    }
  }
  return refused("none", "no such step");
}

int main(void) {
  proactor = pn_proactor();
  char *line = NULL;
  size_t capacity = 0;
  for (;;) {
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    while (poll(&input, 1, 0) == 0) {
      work();
    }
    if (getline(&line, &capacity, stdin) < 0) {
      break;
    }
    json_t *step = json_loads(line, 0, NULL);
    json_t *said = answer(step);
    json_dumpf(said, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(said);
    json_decref(step);
  }
  free(line);
  pn_proactor_free(proactor);
  return 0;
}
