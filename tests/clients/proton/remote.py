"""A Proton client on strings: each line of standard input is a step, each line printed its answer.

The steps are described in tests/clients/README.md.
"""

import json
import select
import sys
import time

import proton
from proton import Condition, Data, Delivery, Described, Endpoint, Link, Message, SSLDomain
from proton import symbol, ulong
from proton.handlers import MessagingHandler
from proton.reactor import Container, LinkOption

POLL_S = 0.02
OUTCOMES = {
    Delivery.ACCEPTED: "accepted",
    Delivery.REJECTED: "rejected",
    Delivery.RELEASED: "released",
    Delivery.MODIFIED: "modified",
}


class Options(LinkOption):
    """What a step asks of an attach."""

    def __init__(self, step, sending):
        self.step = step
        self.sending = sending

    def apply(self, link):
        ours = link.target if self.sending else link.source
        if "capabilities" in self.step:
            symbols = [symbol(c) for c in self.step["capabilities"]]
            ours.capabilities.put_array(False, Data.SYMBOL)
            ours.capabilities.enter()
            for each in symbols:
                ours.capabilities.put_symbol(each)
            ours.capabilities.exit()
        if self.step.get("dynamic"):
            ours.dynamic = True
            ours.address = None
        if self.step.get("coordinator"):
            ours.type = 3  # PN_COORDINATOR
        if "selector" in self.step:
            code = ulong(0x0000468C00000004)
            filters = {symbol("selector"): Described(code, self.step["selector"])}
            ours.filter.put_dict(filters)
        if self.step.get("copy"):
            ours.distribution_mode = 1  # PN_DIST_MODE_COPY
        modes = {"unsettled": 0, "settled": 1, "mixed": 2}
        if "snd_settle" in self.step:
            link.snd_settle_mode = modes[self.step["snd_settle"]]
        if self.step.get("rcv_settle") == "second":
            link.rcv_settle_mode = Link.RCV_SECOND


class Remote(MessagingHandler):
    def __init__(self):
        super().__init__(prefetch=0, auto_accept=False, auto_settle=True)
        self.conn = None
        self.session = None
        self.links = {}
        self.inbox = {}
        self.deliveries = {}
        self.failure = None
        self.gone = False
        self.reconnects = False
        self.tags = 0
        self.detached = set()

    # -- what Proton tells

    def on_delivery(self, event):
        delivery = event.delivery
        link = delivery.link
        if link.is_receiver and delivery.readable and not delivery.partial:
            data = link.recv(delivery.pending)
            link.advance()
            self.inbox.setdefault(link.name, []).append((delivery, data))

    def on_transport_error(self, event):
        """With a list Proton goes on by itself, to the next address."""
        if not self.reconnects:
            self.failure = event.transport.condition

    def on_transport_closed(self, event):
        if self.reconnects:
            return
        if event.transport.condition:
            self.failure = event.transport.condition
        self.gone = True

    def on_link_remote_open(self, event):
        """After a reconnect Proton attaches again; the credit is the program's to give again."""
        link = event.link
        if self.reconnects and link.is_receiver and link.credit < link.asked:
            link.flow(link.asked - link.credit)

    def on_connection_error(self, event):
        self.failure = event.connection.remote_condition

    def on_session_error(self, event):
        pass

    def on_link_error(self, event):
        pass

    def on_link_remote_detach(self, event):
        """A detach that is no close: Proton tells of it, but does not keep it in the state."""
        self.detached.add(event.link.name)

    # -- the loop

    def run(self):
        while True:
            ready, _, _ = select.select([sys.stdin], [], [], 0)
            if not ready:
                if self.conn is None or self.gone:
                    time.sleep(POLL_S)
                else:
                    self.container.process()
                continue
            line = sys.stdin.readline()
            if not line:
                return
            step = json.loads(line)
            answer = getattr(self, "do_" + step["do"].replace("-", "_"))(step)
            print(json.dumps(answer), flush=True)

    def wait(self, until, step):
        """Lets Proton work until something holds; false where it does not in time."""
        deadline = time.monotonic() + step.get("within_ms", 10000) / 1000
        while not until():
            if time.monotonic() > deadline:
                return False
            self.container.process()
        return True

    # -- the steps

    def do_about(self, step):
        return {"version": ".".join(str(each) for each in proton.VERSION)}

    def do_connect(self, step):
        if self.conn is not None and not self.gone:
            self.do_close({"within_ms": 1000})
        self.failure, self.gone, self.links, self.inbox = None, False, {}, {}
        # A container without a connection ends for ever, so each connection has one of its own.
        self.container = Container(self)
        self.container.timeout = POLL_S
        self.container.start()
        self.reconnects = "failover" in step
        places = [str(each) for each in step.get("failover", [step.get("port")])]
        urls = ["amqp://" + (at if ":" in at else f"127.0.0.1:{at}") for at in places]
        options = {} if self.reconnects else {"reconnect": False}
        if "tls_ca" in step:
            urls = [f"amqps://localhost:{step['port']}"]
            trust = SSLDomain(SSLDomain.MODE_CLIENT)
            trust.set_trusted_ca_db(step["tls_ca"])
            trust.set_peer_authentication(SSLDomain.VERIFY_PEER_NAME)
            if "tls_cert" in step:
                trust.set_credentials(step["tls_cert"], step["tls_key"], None)
            options["ssl_domain"] = trust
        if "user" in step:
            options.update(user=step["user"], password=step["password"])
        if "container" in step:
            self.container.container_id = step["container"]
        if "idle_ms" in step:
            options["heartbeat"] = step["idle_ms"] / 1000
        self.container.allow_insecure_mechs = True
        self.conn = self.container.connect(
            urls=urls,
            allowed_mechs=step.get("mechs", "PLAIN" if "user" in step else "ANONYMOUS"),
            **options,
        )
        active = Endpoint.REMOTE_ACTIVE
        self.wait(lambda: self.conn.state & active or self.gone or self.failure, step)
        if self.failure:
            return {"error": said(self.failure)}
        if not self.conn.state & active:
            return {"error": {"condition": "none", "description": "no answer"}}
        self.session = self.conn.session()
        self.session.open()
        offered = self.conn.remote_offered_capabilities
        return {
            "container": self.conn.remote_container,
            "offered": [str(each) for each in offered] if offered else [],
            "properties": {str(k): str(v) for k, v in (self.conn.remote_properties or {}).items()},
        }

    def do_sender(self, step):
        link = self.container.create_sender(
            self.session, step.get("to"), name=step["name"], options=Options(step, True)
        )
        return self.opened(link, step)

    def do_receiver(self, step):
        link = self.container.create_receiver(
            self.session, step.get("from"), name=step["name"], options=Options(step, False)
        )
        link.asked = step.get("credit", 0)
        if link.asked:
            link.flow(link.asked)
        return self.opened(link, step)

    def opened(self, link, step):
        self.links[step["name"]] = link
        closed, active = Endpoint.REMOTE_CLOSED, Endpoint.REMOTE_ACTIVE
        self.wait(lambda: link.state & (active | closed) or self.gone, step)
        ours = link.remote_target if link.is_sender else link.remote_source
        if not ours.address and not link.state & closed:
            # A refusal: the attach has no terminus, and the detach follows.
            self.wait(lambda: link.state & closed or self.gone, step)
        if link.state & closed:
            return {"error": said(link.remote_condition)}
        if self.gone:
            return {"error": said(self.failure)}
        return {
            "address": ours.address,
            "snd_settle": link.remote_snd_settle_mode,
            "rcv_settle": link.remote_rcv_settle_mode,
            "max_message_size": link.remote_max_message_size,
        }

    def do_credit(self, step):
        """Waits until a sender has that much credit."""
        link = self.links[step["name"]]
        self.wait(lambda: link.credit >= step.get("least", 1), step)
        return {"credit": link.credit}

    def do_send(self, step):
        link = self.links[step["name"]]
        if not self.wait(lambda: link.credit > 0 or closed(link) or self.gone, step):
            return {"error": {"condition": "none", "description": "no credit"}}
        if closed(link):
            return {"error": said(link.remote_condition)}
        self.tags += 1
        delivery = link.delivery(step.get("tag", f"t{self.tags}"))
        self.deliveries[step.get("as", f"t{self.tags}")] = delivery
        if step.get("settled"):
            delivery.settle()
        encoded = bytes.fromhex(step["hex"]) if "hex" in step else made(step).encode()
        if step.get("abort"):
            link.stream(encoded)
            self.container.process()
            delivery.abort()
            return {"state": "aborted"}
        link.stream(encoded)
        link.advance()
        if step.get("settled"):
            self.container.process()
            return {"state": "none"}
        if step.get("nowait"):
            self.container.process()
            return {}
        self.wait(lambda: delivery.remote_state or closed(link) or self.gone, step)
        if closed(link):
            return {"error": said(link.remote_condition)}
        answer = {"state": OUTCOMES.get(delivery.remote_state, "none")}
        if delivery.remote_state == Delivery.REJECTED:
            answer["error"] = said(delivery.remote.condition)
        return answer

    def do_flow(self, step):
        self.links[step["name"]].flow(step["credit"])
        self.container.process()
        return {}

    def do_drain(self, step):
        link = self.links[step["name"]]
        link.drain(step.get("credit", 0))
        done = self.wait(lambda: link.credit == 0 and not link.draining(), step)
        return {"done": done, "unused": link.drained()}

    def do_take(self, step):
        """Hands out what has come, waiting for `count` of them."""
        name = step["name"]
        self.wait(lambda: len(self.inbox.get(name, [])) >= step["count"] or self.gone, step)
        messages = []
        for at, (delivery, data) in enumerate(self.inbox.pop(name, [])):
            self.deliveries[f"{step.get('as', name)}:{at}"] = delivery
            if "read" in step:
                messages.append(read(data))
            else:
                messages.append({"hex": data.hex(), "tag": str(delivery.tag)})
        return {"messages": messages}

    def do_settle(self, step):
        delivery = self.deliveries[step["delivery"]]
        outcome = step["outcome"]
        states = {
            "accepted": Delivery.ACCEPTED,
            "rejected": Delivery.REJECTED,
            "released": Delivery.RELEASED,
            "modified": Delivery.MODIFIED,
        }
        if outcome == "modified":
            delivery.local.failed = step.get("failed", False)
            delivery.local.undeliverable = step.get("undeliverable", False)
        if outcome == "rejected":
            delivery.local.condition = Condition("test:bad", "the test says so")
        delivery.update(states[outcome])
        if step.get("unsettled"):
            done = self.wait(lambda: delivery.settled, step)
            delivery.settle()
            return {"settled": done}
        delivery.settle()
        self.container.process()
        return {}

    def do_detach(self, step):
        name = step["name"]
        link = self.links.pop(name)
        self.detached.discard(name)
        if step.get("closed", True):
            link.close()
        else:
            link.detach()
        done = self.wait(lambda: closed(link) or name in self.detached or self.gone, step)
        answered = done and not self.gone
        link.free()
        return {"answered": answered}

    def do_link_closed(self, step):
        """Waits until the broker ends a link by itself."""
        link = self.links[step["name"]]
        if not self.wait(lambda: closed(link) or self.gone, step):
            return {"error": None}
        return {"error": said(link.remote_condition if closed(link) else self.failure)}

    def do_end(self, step):
        session = self.session
        session.close()
        done = self.wait(lambda: session.state & Endpoint.REMOTE_CLOSED or self.gone, step)
        answered = done and not self.gone
        self.session = self.conn.session()
        self.session.open()
        return {"answered": answered}

    def do_close(self, step):
        self.reconnects = False
        self.conn.close()
        self.wait(lambda: self.conn.state & Endpoint.REMOTE_CLOSED or self.gone, step)
        answered = bool(self.conn.state & Endpoint.REMOTE_CLOSED)
        self.wait(lambda: self.gone, step)
        return {"answered": answered}

    def do_connection_closed(self, step):
        """Waits until the broker ends the connection by itself."""
        closed = Endpoint.REMOTE_CLOSED
        self.wait(lambda: self.conn.state & closed or self.gone, step)
        condition = self.conn.remote_condition or self.failure
        return {"closed": bool(self.conn.state & closed or self.gone), "error": said(condition)}

    def do_idle(self, step):
        """Lets the connection be for a while, and says whether it is still there."""
        self.wait(lambda: self.gone, {"within_ms": step["ms"]})
        return {"open": not self.gone}


def made(step):
    """A message as an application makes it."""
    if "body" in step:
        message = Message(body=bytes.fromhex(step["body"]), inferred=True)
    else:
        message = Message(body=step["text"])
    message.durable = step.get("durable", False)
    message.reply_to = step.get("reply_to")
    message.correlation_id = step.get("correlation")
    if "duplicate_id" in step:
        message.properties = {"_AMQ_DUPL_ID": step["duplicate_id"]}
    return message


def read(data):
    """A message as an application reads it."""
    message = Message()
    message.decode(data)
    annotations = message.annotations or {}
    answer = {
        "reply_to": message.reply_to,
        "correlation": message.correlation_id,
        "annotations": {str(key): str(value) for key, value in annotations.items()},
    }
    if isinstance(message.body, str):
        answer["text"] = message.body
    else:
        answer["body"] = bytes(message.body).hex()
    return answer


def closed(link):
    return bool(link.state & Endpoint.REMOTE_CLOSED)


def said(condition):
    if condition is None:
        return None
    return {"condition": str(condition.name), "description": str(condition.description)}


if __name__ == "__main__":
    Remote().run()
