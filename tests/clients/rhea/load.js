// Producers and consumers on rhea that reconnect for as long as they are wanted.
//
// Takes one argument, the JSON object that tests/clients/README.md describes, and prints events.
'use strict';

const fs = require('fs');
const rhea = require('rhea');

const RECONNECT_MS = 50;
const TICK_MS = 50;

function say(ev, fields) {
    const line = { ev, ...fields, t: Number(process.hrtime.bigint()) };
    fs.writeSync(1, JSON.stringify(line) + '\n');
}

// One connection of its own, opened again whenever it is lost.
class Role {
    constructor(load, spec) {
        this.load = load;
        this.spec = spec;
        this.name = spec.name;
        this.queue = spec.queue;
        this.connection = null;
        this.finished = false;
    }

    connect() {
        if (this.finished) return;
        const address = this.load.address();
        if (!address) {
            setTimeout(() => this.connect(), RECONNECT_MS);
            return;
        }
        this.inc = address.inc;
        const id = `${this.name}-${address.inc}-${process.pid}`;
        const container = rhea.create_container({ id });
        const connection = container.connect({
            host: '127.0.0.1', port: address.port, username: 'anonymous', reconnect: false,
            idle_time_out: 20000,
        });
        this.connection = connection;
        container.on('error', (error) => say('error', { who: this.name, why: String(error) }));
        connection.on('connection_open', () => {
            say('up', { who: this.name, inc: this.inc });
            this.opened();
        });
        connection.on('connection_error', (context) => this.refused('connection', context));
        connection.on('session_error', (context) => this.refused('session', context));
        connection.on('receiver_error', (context) => this.refused('receiver', context));
        connection.on('sender_error', (context) => this.refused('sender', context));
        connection.on('connection_close', () => {
            this.closed(connection.error);
            this.lost(connection, 'closed');
        });
        connection.on('disconnected', (context) => {
            this.lost(connection, context.error ? String(context.error.message) : 'disconnected');
        });
    }

    refused(what, context) {
        const error = (context[what] || {}).error || {};
        if (error.condition === 'amqp:connection:forced') return;
        say('error', { who: this.name, why: `${what}: ${error.condition}: ${error.description}` });
    }

    lost(connection, why) {
        if (this.connection !== connection) return;
        this.connection = null;
        say('down', { who: this.name, inc: this.inc, why });
        this.broken();
        if (!this.finished) setTimeout(() => this.connect(), RECONNECT_MS);
    }

    closed() {}
}

class Producer extends Role {
    constructor(load, spec) {
        super(load, spec);
        this.next = 0;
        this.pending = new Map();
        this.sender = null;
        this.pausing = false;
    }

    opened() {
        const sender = this.connection.open_sender({
            target: { address: this.queue, capabilities: ['queue'] },
            autosettle: true, treat_modified_as_released: false,
        });
        this.sender = sender;
        sender.on('sendable', () => this.fill());
        sender.on('accepted', (context) => this.answered(sender, context, null));
        for (const why of ['rejected', 'released', 'modified']) {
            sender.on(why, (context) => this.answered(sender, context, why));
        }
    }

    broken() {
        this.pending.clear();
        this.sender = null;
    }

    answered(sender, context, why) {
        if (sender !== this.sender) return;
        const id = this.pending.get(context.delivery.id);
        if (id === undefined) return;
        this.pending.delete(context.delivery.id);
        const fields = { id, q: this.queue, inc: this.inc };
        if (why) say('refused', { ...fields, why });
        else say('accepted', fields);
        this.fill();
    }

    fill() {
        const window = this.spec.window || 20;
        while (this.sender && !this.load.stopping && this.sender.sendable()
            && this.pending.size < window && !this.pausing) {
            if (this.spec.pause_ms) {
                this.pausing = true;
                setTimeout(() => { this.pausing = false; this.fill(); }, this.spec.pause_ms);
            }
            const id = `${this.name}-${this.next++}`;
            say('sent', { id, q: this.queue, inc: this.inc });
            const delivery = this.sender.send({
                message_id: id, durable: true,
                application_properties: { producer: this.name },
                body: rhea.message.data_section(body(id, this.spec.body || 100)),
            });
            this.pending.set(delivery.id, id);
        }
    }

    tick() {
        this.fill();
        if (!this.load.stopping || this.finished || this.pending.size) return;
        this.finished = true;
        if (this.connection) this.connection.close();
    }
}

class Consumer extends Role {
    constructor(load, spec) {
        super(load, spec);
        this.style = spec.style || 'detach';
        this.batch = spec.batch || 40;
        this.links = 0;
        this.seen = 0;
        this.ends = 0;
        this.seen_before_drain = 0;
        this.forget();
    }

    forget() {
        this.receiver = null;
        this.closing = null;
        this.settled = [];
        this.unsettled = new Map();
    }

    opened() {
        this.attach();
    }

    attach() {
        this.forget();
        this.link = `${this.name}/${++this.links}`;
        const session = this.connection.create_session();
        session.open();
        const receiver = session.open_receiver({
            name: this.link, source: { address: this.queue, capabilities: ['queue'] },
            credit_window: 0, autoaccept: false, autosettle: false,
        });
        this.session = session;
        this.receiver = receiver;
        receiver.add_credit(this.spec.credit || 30);
        if (this.style === 'drain') receiver.drain_credit();
        say('attached', { who: this.name, q: this.queue, inc: this.inc, link: this.link });
        receiver.on('message', (context) => this.received(receiver, context));
        receiver.on('settled', (context) => this.answered(receiver, context));
        receiver.on('receiver_drained', () => this.drained(receiver));
        receiver.on('receiver_close', () => {
            if (receiver !== this.receiver || this.closing !== 'detach' || receiver.error) return;
            this.confirm('detach');
            session.close();
            this.again();
        });
        session.on('session_close', () => {
            if (session !== this.session || this.closing !== 'end' || session.error) return;
            this.confirm('end');
            this.again();
        });
    }

    broken() {
        this.forget();
    }

    received(receiver, { message, delivery }) {
        if (receiver !== this.receiver || this.closing) return;
        const id = message.message_id;
        // Proton sends bytes as an amqp-value, rhea as a data section.
        const bytes = Buffer.isBuffer(message.body) ? message.body : message.body.content;
        say('received', {
            id, q: this.queue, inc: this.inc, link: this.link,
            fa: Boolean(message.first_acquirer), dc: message.delivery_count || 0,
            whole: Buffer.compare(bytes, body(id, bytes.length)) === 0,
        });
        this.seen++;
        this.outcome(id, delivery);
        if (this.style === 'drain') return;
        receiver.add_credit(1);
        if (this.style !== 'outcome' && this.settled.length >= this.batch) this.finish_link();
    }

    outcome(id, delivery) {
        if (this.style === 'outcome') {
            say('outcome', { id, link: this.link, kind: 'accepted', settled: false });
            this.unsettled.set(delivery.id, id);
            delivery.update(false, rhea.message.accepted().described());
            return;
        }
        let kind = 'accepted';
        if (this.style === 'mixed' && this.seen % 10 === 0) kind = 'released';
        if (this.style === 'mixed' && this.seen % 15 === 0) kind = 'failed';
        say('outcome', { id, link: this.link, kind, settled: true });
        // rhea 3.0.5 merges a first disposition with the next one whatever that says, so each that
        // is not `accepted` is written by itself.
        if (kind !== 'accepted') this.write_dispositions();
        if (kind === 'accepted') delivery.update(true, rhea.message.accepted().described());
        if (kind === 'released') delivery.update(true, rhea.message.released().described());
        if (kind === 'failed') {
            delivery.update(true, rhea.message.modified({ delivery_failed: true }).described());
        }
        if (kind !== 'accepted') this.write_dispositions();
        this.settled.push({ id, kind });
    }

    write_dispositions() {
        this.session.incoming.process(this.session);
    }

    // The broker settled an outcome that was sent unsettled.
    answered(receiver, { delivery }) {
        if (receiver !== this.receiver || !this.unsettled.has(delivery.id)) return;
        const id = this.unsettled.get(delivery.id);
        this.unsettled.delete(delivery.id);
        delivery.settled = true;
        say('confirmed', { id, link: this.link, by: 'outcome' });
    }

    finish_link() {
        if (!this.receiver || this.closing) return;
        this.closing = this.finished ? 'close' : ['detach', 'end', 'close'][this.ends++ % 3];
        if (this.closing === 'detach') this.receiver.close();
        else if (this.closing === 'end') this.session.close();
        else this.connection.close();
    }

    confirm(by) {
        for (const { id, kind } of this.settled) {
            if (kind === 'accepted') say('confirmed', { id, link: this.link, by });
        }
        say('detached', { who: this.name, q: this.queue, inc: this.inc, link: this.link });
        this.forget();
    }

    // A close with an error is no answer to ours: the two have crossed.
    closed(error) {
        if (this.closing === 'close' && !error) this.confirm('close');
    }

    again() {
        if (!this.finished) this.attach();
    }

    // Credit that comes back unused means an empty queue; used up, it means: ask again.
    drained(receiver) {
        if (receiver !== this.receiver || this.closing) return;
        const credit = this.spec.credit || 30;
        if (this.seen - this.seen_before_drain === credit) {
            this.seen_before_drain = this.seen;
            receiver.add_credit(credit);
            return;
        }
        say('drained', { who: this.name, q: this.queue, inc: this.inc });
        this.end();
    }

    end() {
        this.finished = true;
        this.finish_link();
    }

    tick() {
        if (!this.load.stopping || this.finished || !this.load.producers_done()) return;
        if (this.unsettled.size) return;
        if (this.receiver && !this.closing) this.end();
        else if (!this.connection) this.finished = true;
    }
}

class Load {
    constructor(spec) {
        this.spec = spec;
        this.stopping = false;
        this.producers = (spec.producers || []).map((role) => new Producer(this, role));
        this.consumers = (spec.consumers || []).map((role) => new Consumer(this, role));
        this.roles = [...this.producers, ...this.consumers];
    }

    address() {
        try {
            const address = fs.readFileSync(this.spec.address, 'utf8');
            const [inc, port] = address.trim().split(' ').map(Number);
            return Number.isInteger(inc) && Number.isInteger(port) ? { inc, port } : null;
        } catch (error) {
            if (error.code === 'ENOENT') return null;
            throw error;
        }
    }

    producers_done() {
        return this.producers.every((producer) => producer.finished);
    }

    run() {
        this.roles.forEach((role) => role.connect());
        process.stdin.on('end', () => { this.stopping = true; });
        process.stdin.resume();
        const timer = setInterval(() => {
            this.roles.forEach((role) => role.tick());
            if (this.roles.every((role) => role.finished && !role.connection)) {
                clearInterval(timer);
                say('done', {});
            }
        }, TICK_MS);
    }
}

// The id over and over, cut to size, so that a torn body shows.
function body(id, size) {
    return Buffer.alloc(size, `${id};`);
}

new Load(JSON.parse(process.argv[2])).run();
