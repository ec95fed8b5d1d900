"""Producers and consumers on Qpid Proton that reconnect for as long as they are wanted.

Takes one argument, the JSON object that tests/clients/README.md describes, and prints events.
"""

import json
import sys
import threading
import time

from proton import Delivery, Message, symbol
from proton.handlers import MessagingHandler
from proton.reactor import Container, ReceiverOption, SenderOption

RECONNECT_S = 0.05
TICK_S = 0.05


def say(ev, **fields):
    fields["ev"] = ev
    fields["t"] = time.monotonic_ns()
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


class Timer:
    """Proton calls `on_timer_task` of what was scheduled."""

    def __init__(self, call):
        self.on_timer_task = lambda event: call()


class Role(MessagingHandler):
    """One connection of its own, opened again whenever it is lost."""

    def __init__(self, load, spec):
        super().__init__(prefetch=0, auto_accept=False, auto_settle=False)
        self.load = load
        self.name = spec["name"]
        self.queue = spec["queue"]
        self.spec = spec
        self.conn = None
        self.inc = None
        self.finished = False

    def connect(self):
        if self.finished:
            return
        address = self.load.address()
        if address is None:
            self.load.after(RECONNECT_S, self.connect)
            return
        self.inc, port = address
        self.conn = self.load.container.connect(
            f"amqp://127.0.0.1:{port}",
            reconnect=False,
            handler=self,
            sasl_enabled=True,
            allowed_mechs="ANONYMOUS",
            heartbeat=20,
        )

    def on_connection_opened(self, event):
        if event.connection == self.conn:
            say("up", who=self.name, inc=self.inc)
            self.opened()

    def lost(self, connection, why):
        if self.conn is None or connection != self.conn:
            return
        self.conn = None
        say("down", who=self.name, inc=self.inc, why=why)
        self.broken()
        if not self.finished:
            self.load.after(RECONNECT_S, self.connect)

    def on_transport_error(self, event):
        """Keeps Proton from raising: a lost connection is what these programs are for."""

    def on_transport_closed(self, event):
        condition = event.transport.condition
        self.lost(event.connection, str(condition or "closed"))

    def on_connection_error(self, event):
        condition = event.connection.remote_condition
        if condition.name != "amqp:connection:forced":
            say("error", who=self.name, why=f"connection: {condition}")

    def on_session_error(self, event):
        say("error", who=self.name, why=f"session: {event.session.remote_condition}")

    def on_link_error(self, event):
        condition = event.link.remote_condition
        if condition.name != "amqp:connection:forced":
            say("error", who=self.name, why=f"link: {condition}")

    def end(self):
        self.finished = True
        if self.conn is not None:
            self.conn.close()


class Durable(SenderOption):
    """Asks for what the AMQP address of a queue is: a durable node."""

    def apply(self, sender):
        sender.target.capabilities.put_object(symbol("queue"))


class Producer(Role):
    def __init__(self, load, spec):
        super().__init__(load, spec)
        self.next = 0
        self.pending = {}
        self.sender = None
        self.pause_s = spec.get("pause_ms", 0) / 1000
        self.pausing = False

    def opened(self):
        self.sender = self.load.container.create_sender(self.conn, self.queue, options=Durable())

    def broken(self):
        self.pending.clear()
        self.sender = None

    def on_sendable(self, event):
        self.fill()

    def fill(self):
        window = self.spec.get("window", 20)
        while (
            self.sender is not None
            and not self.load.stopping
            and self.sender.credit > 0
            and len(self.pending) < window
        ):
            if self.pausing:
                return
            if self.pause_s:
                self.pausing = True
                self.load.after(self.pause_s, self.resume)
            id = f"{self.name}-{self.next}"
            self.next += 1
            message = Message(id=id, durable=True, body=body(id, self.spec.get("body", 100)))
            message.properties = {"producer": self.name}
            say("sent", id=id, q=self.queue, inc=self.inc)
            delivery = self.sender.send(message)
            self.pending[delivery.tag] = id

    def resume(self):
        self.pausing = False
        self.fill()

    def on_delivery(self, event):
        delivery = event.delivery
        if not delivery.updated or delivery.tag not in self.pending:
            return
        if delivery.settled:
            id = self.pending.pop(delivery.tag)
            if delivery.remote_state == Delivery.ACCEPTED:
                say("accepted", id=id, q=self.queue, inc=self.inc)
            else:
                say("refused", id=id, q=self.queue, inc=self.inc, why=str(delivery.remote_state))
            delivery.settle()
            self.fill()

    def tick(self):
        self.fill()
        if self.load.stopping and not self.finished and not self.pending:
            self.end()


class Consumer(Role):
    ENDS = ("detach", "end", "close")

    def __init__(self, load, spec):
        super().__init__(load, spec)
        self.style = spec.get("style", "detach")
        self.batch = spec.get("batch", 40)
        self.links = 0
        self.seen = 0
        self.receiver = None
        self.closing = None
        self.settled = []
        self.unsettled = {}
        self.ends = 0

    def opened(self):
        self.attach()

    def attach(self):
        self.links += 1
        self.link = f"{self.name}/{self.links}"
        self.settled = []
        self.closing = None
        session = self.conn.session()
        session.open()
        self.session = session
        self.receiver = self.load.container.create_receiver(
            session, self.queue, name=self.link, options=FromQueue()
        )
        if self.style == "drain":
            self.receiver.drain(self.spec.get("credit", 30))
        else:
            self.receiver.flow(self.spec.get("credit", 30))
        say("attached", who=self.name, q=self.queue, inc=self.inc, link=self.link)

    def broken(self):
        self.receiver = None
        self.closing = None
        self.settled = []
        self.unsettled = {}

    def on_message(self, event):
        if event.receiver != self.receiver or self.closing is not None:
            return
        message, delivery = event.message, event.delivery
        id = str(message.id)
        say(
            "received",
            id=id,
            q=self.queue,
            inc=self.inc,
            link=self.link,
            fa=bool(message.first_acquirer),
            dc=message.delivery_count,
            whole=bytes(message.body) == body(id, len(message.body)),
        )
        self.seen += 1
        self.answer(id, delivery)
        if self.style == "drain":
            self.drain_on()
            return
        self.receiver.flow(1)
        if self.style in ("detach", "mixed") and len(self.settled) >= self.batch:
            self.finish_link()

    def answer(self, id, delivery):
        if self.style == "outcome":
            say("outcome", id=id, link=self.link, kind="accepted", settled=False)
            self.unsettled[delivery.tag] = id
            delivery.update(Delivery.ACCEPTED)
            return
        kind = "accepted"
        if self.style == "mixed" and self.seen % 10 == 0:
            kind = "released"
        if self.style == "mixed" and self.seen % 15 == 0:
            kind = "failed"
        say("outcome", id=id, link=self.link, kind=kind, settled=True)
        if kind == "failed":
            delivery.local.failed = True
        states = {
            "accepted": Delivery.ACCEPTED,
            "released": Delivery.RELEASED,
            "failed": Delivery.MODIFIED,
        }
        delivery.update(states[kind])
        delivery.settle()
        self.settled.append((id, kind))

    def on_settled(self, event):
        """The broker settled an outcome that was sent unsettled."""
        if event.delivery.link != self.receiver:
            return
        id = self.unsettled.pop(event.delivery.tag, None)
        if id is not None:
            say("confirmed", id=id, link=self.link, by="outcome")
            event.delivery.settle()

    def finish_link(self):
        if self.receiver is None or self.closing is not None:
            return
        self.closing = "close" if self.finished else self.ENDS[self.ends % len(self.ENDS)]
        self.ends += 1
        if self.closing == "detach":
            self.receiver.close()
        elif self.closing == "end":
            self.session.close()
        else:
            self.conn.close()

    def confirm(self, by):
        for id, kind in self.settled:
            if kind == "accepted":
                say("confirmed", id=id, link=self.link, by=by)
        self.settled = []
        say("detached", who=self.name, q=self.queue, inc=self.inc, link=self.link)
        self.receiver = None

    def on_link_closed(self, event):
        if event.link == self.receiver and self.closing == "detach":
            self.confirm("detach")
            self.session.close()
            self.again()

    def on_session_closed(self, event):
        if event.session == self.session and self.closing == "end":
            self.confirm("end")
            self.again()

    def on_connection_closed(self, event):
        # A close with an error is no answer to ours: the two have crossed.
        answered = event.connection.remote_condition is None
        if event.connection == self.conn and self.closing == "close" and answered:
            self.confirm("close")

    def again(self):
        if not self.finished:
            self.attach()

    def on_link_flow(self, event):
        if self.style == "drain" and event.link == self.receiver:
            self.drain_on()

    def drain_on(self):
        """Credit that comes back unused means an empty queue; used up, it means: ask again."""
        if self.receiver.credit > 0 or self.closing is not None:
            return
        if self.receiver.drained() > 0:
            say("drained", who=self.name, q=self.queue, inc=self.inc)
            self.end()
        else:
            self.receiver.drain(self.spec.get("credit", 30))

    def end(self):
        self.finished = True
        self.finish_link()

    def tick(self):
        if not self.load.stopping or self.finished or not self.load.producers_done():
            return
        if self.unsettled:
            return
        if self.receiver is not None and self.closing is None:
            self.end()
        elif self.conn is None:
            self.finished = True


class FromQueue(ReceiverOption):
    def apply(self, receiver):
        receiver.source.capabilities.put_object(symbol("queue"))


class Load(MessagingHandler):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.stopping = False
        self.producers = [Producer(self, role) for role in spec.get("producers", [])]
        self.consumers = [Consumer(self, role) for role in spec.get("consumers", [])]

    def address(self):
        try:
            with open(self.spec["address"], encoding="utf-8") as file:
                inc, port = file.read().split()
                return int(inc), int(port)
        except (FileNotFoundError, ValueError):
            return None

    def after(self, seconds, call):
        self.container.schedule(seconds, Timer(call))

    def producers_done(self):
        return all(p.finished for p in self.producers)

    def on_start(self, event):
        self.container = event.container
        for role in self.producers + self.consumers:
            role.connect()
        threading.Thread(target=self.wait_for_stop, daemon=True).start()
        self.tick()

    def wait_for_stop(self):
        sys.stdin.read()
        self.stopping = True

    def tick(self):
        roles = self.producers + self.consumers
        for role in roles:
            role.tick()
        if all(role.finished and role.conn is None for role in roles):
            say("done")
            self.container.stop()
        else:
            self.after(TICK_S, self.tick)


def body(id, size):
    """The id over and over, cut to size, so that a torn body shows."""
    unit = (id + ";").encode()
    return (unit * (size // len(unit) + 1))[:size]


if __name__ == "__main__":
    Container(Load(json.loads(sys.argv[1]))).run()
