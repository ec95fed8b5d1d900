// A rhea client on strings: each line of standard input is a step, each line printed its answer.
//
// The steps are described in tests/clients/README.md.
'use strict';

const fs = require('fs');
const readline = require('readline');
const rhea = require('rhea');
const codec = require('rhea/lib/message.js');

// The bytes of a message as they came; rhea itself hands out only what it has decoded.
const decode = codec.decode;
codec.decode = (bytes) => Object.assign(decode(bytes), { raw: Buffer.from(bytes) });

const POLL_MS = 5;

class Remote {
    constructor() {
        this.links = {};
        this.inbox = {};
        this.deliveries = {};
        this.states = new Map();
        this.tags = 0;
    }

    // Resolves to whether something came to hold in time.
    wait(until, step) {
        const deadline = Date.now() + (step.within_ms || 10000);
        return new Promise((resolve) => {
            const look = () => {
                if (until()) resolve(true);
                else if (Date.now() > deadline) resolve(false);
                else setTimeout(look, POLL_MS);
            };
            look();
        });
    }

    async about() {
        return { version: require('rhea/package.json').version };
    }

    async connect(step) {
        if (this.connection && !this.gone) await this.close({ within_ms: 1000 });
        const container = rhea.create_container({ id: step.container || `rhea-${process.pid}` });
        this.links = {};
        this.inbox = {};
        this.gone = false;
        this.failure = null;
        const options = { host: '127.0.0.1', port: step.port, reconnect: Boolean(step.failover) };
        this.reconnects = options.reconnect;
        if (step.failover) {
            let next = 0;
            options.connection_details = () => {
                const port = step.failover[next++ % step.failover.length];
                return { ...options, port };
            };
        }
        if (step.tls_ca) {
            Object.assign(options, {
                transport: 'tls', host: 'localhost', servername: 'localhost',
                ca: [fs.readFileSync(step.tls_ca)],
            });
            if (step.tls_cert) {
                options.cert = fs.readFileSync(step.tls_cert);
                options.key = fs.readFileSync(step.tls_key);
                options.enable_sasl_external = true;
            }
        }
        if (step.user !== undefined) {
            options.username = step.user;
            options.password = step.password;
        } else {
            options.username = 'anonymous';
        }
        if (step.idle_ms) options.idle_time_out = step.idle_ms;
        let open = false;
        const connection = container.connect(options);
        this.connection = connection;
        connection.on('connection_open', () => { open = true; });
        connection.on('connection_error', (c) => { this.failure = said(c.connection.error); });
        connection.on('connection_close', () => { this.closed = true; });
        connection.on('disconnected', (c) => {
            this.gone = !this.reconnects;
            if (c.error && !this.failure) {
                const { condition, message, description } = c.error;
                const said = description || message;
                this.failure = { condition: condition || 'none', description: said };
            }
        });
        for (const what of ['session_error', 'session_close', 'receiver_close', 'sender_close']) {
            connection.on(what, () => {});
        }
        connection.on('protocol_error', (error) => {
            this.failure = { condition: 'protocol-error', description: String(error.message) };
        });
        container.on('error', (error) => {
            this.failure = { condition: error.condition || 'none', description: String(error) };
        });
        this.closed = false;
        await this.wait(() => open || this.gone || this.failure, step);
        if (this.failure || !open) {
            return { error: this.failure || { condition: 'none', description: 'no answer' } };
        }
        this.session = connection.create_session();
        this.session.open();
        return {
            container: connection.container_id,
            offered: [].concat(connection.offered_capabilities || []).map(String),
            properties: connection.properties || {},
        };
    }

    async opened(link, step) {
        this.links[step.name] = link;
        link.errored = undefined;
        const closed = () => { link.ended = true; link.errored = said(link.error); };
        link.on('sender_close', closed);
        link.on('receiver_close', closed);
        link.on('sender_error', closed);
        link.on('receiver_error', closed);
        let open = false;
        link.on('sender_open', () => { open = true; });
        link.on('receiver_open', () => { open = true; });
        await this.wait(() => open || link.ended || this.gone, step);
        const ours = () => (link.is_sender() ? link.target : link.source) || {};
        if (open && !ours().address) await this.wait(() => link.ended || this.gone, step);
        if (link.ended) return { error: link.errored };
        if (this.gone) return { error: this.failure };
        return {
            address: ours().address,
            snd_settle: link.snd_settle_mode || 0,
            rcv_settle: link.rcv_settle_mode || 0,
            max_message_size: Number(link.max_message_size || 0),
        };
    }

    terminus(step, address) {
        const terminus = { address };
        if (step.capabilities) terminus.capabilities = step.capabilities;
        if (step.dynamic) {
            terminus.dynamic = true;
            delete terminus.address;
        }
        if (step.selector) terminus.filter = rhea.filter.selector(step.selector);
        if (step.copy) terminus.distribution_mode = 'copy';
        return terminus;
    }

    sender(step) {
        const modes = { unsettled: 0, settled: 1, mixed: 2 };
        const sender = this.session.open_sender({
            name: step.name, target: this.terminus(step, step.to), autosettle: true,
            snd_settle_mode: modes[step.snd_settle || 'mixed'], treat_modified_as_released: false,
        });
        for (const state of ['accepted', 'rejected', 'released', 'modified']) {
            sender.on(state, ({ delivery }) => this.states.set(delivery, state));
        }
        return this.opened(sender, step);
    }

    receiver(step) {
        const receiver = this.session.open_receiver({
            name: step.name, source: this.terminus(step, step.from), credit_window: 0,
            autoaccept: false, autosettle: false,
            rcv_settle_mode: step.rcv_settle === 'second' ? 1 : 0,
        });
        this.inbox[step.name] = [];
        receiver.on('message', ({ message, delivery }) => {
            (this.inbox[step.name] = this.inbox[step.name] || []).push({ message, delivery });
        });
        receiver.on('receiver_drained', () => { receiver.is_drained = true; });
        receiver.on('settled', ({ delivery }) => { delivery.by_peer = true; });
        // After a reconnect rhea attaches again; the credit is the program's to give again.
        receiver.on('receiver_open', () => {
            if (this.reconnects && receiver.credit < step.credit) {
                receiver.add_credit(step.credit - receiver.credit);
            }
        });
        if (step.credit) receiver.add_credit(step.credit);
        return this.opened(receiver, step);
    }

    async credit(step) {
        const link = this.links[step.name];
        await this.wait(() => link.credit >= (step.least || 1), step);
        return { credit: link.credit };
    }

    async send(step) {
        const link = this.links[step.name];
        if (!await this.wait(() => link.sendable() || link.ended || this.gone, step)) {
            return { error: { condition: 'none', description: 'no credit' } };
        }
        if (link.ended) return { error: link.errored };
        const tag = step.tag || `t${++this.tags}`;
        const delivery = step.hex === undefined
            ? link.send(made(step), Buffer.from(tag))
            : link.send(Buffer.from(step.hex, 'hex'), Buffer.from(tag), 0);
        this.deliveries[step.as || tag] = delivery;
        if (step.settled) {
            delivery.update(true);
            return { state: 'none' };
        }
        if (step.nowait) return {};
        await this.wait(() => this.states.has(delivery) || link.ended || this.gone, step);
        if (link.ended) return { error: link.errored };
        const answer = { state: this.states.get(delivery) || 'none' };
        if (answer.state === 'rejected') answer.error = said((delivery.remote_state || {}).error);
        return answer;
    }

    async flow(step) {
        this.links[step.name].add_credit(step.credit);
        return {};
    }

    async drain(step) {
        const link = this.links[step.name];
        link.is_drained = false;
        if (step.credit) link.add_credit(step.credit);
        const before = this.inbox[step.name].length;
        const asked = link.credit;
        link.drain_credit();
        const done = await this.wait(() => link.is_drained, step);
        link.drain = false;
        return { done, unused: asked - (this.inbox[step.name].length - before) };
    }

    async take(step) {
        const inbox = () => this.inbox[step.name] || [];
        await this.wait(() => inbox().length >= step.count || this.gone, step);
        const messages = inbox().map(({ message, delivery }, at) => {
            this.deliveries[`${step.as || step.name}:${at}`] = delivery;
            if (step.read) return read(message);
            return { hex: message.raw.toString('hex'), tag: String(delivery.tag) };
        });
        this.inbox[step.name] = [];
        return { messages };
    }

    async settle(step) {
        const delivery = this.deliveries[step.delivery];
        const outcomes = {
            accepted: () => rhea.message.accepted(),
            released: () => rhea.message.released(),
            rejected: () => rhea.message.rejected({
                error: { condition: 'test:bad', description: 'the test says so' },
            }),
            modified: () => rhea.message.modified({
                delivery_failed: Boolean(step.failed),
                undeliverable_here: Boolean(step.undeliverable),
            }),
        };
        delivery.update(!step.unsettled, outcomes[step.outcome]().described());
        if (!step.unsettled) return {};
        const settled = await this.wait(() => delivery.by_peer, step);
        delivery.settled = true;
        return { settled };
    }

    async detach(step) {
        const link = this.links[step.name];
        delete this.links[step.name];
        if (step.closed === false) link.detach();
        else link.close();
        const done = await this.wait(() => link.ended || this.gone, step);
        return { answered: done && !this.gone };
    }

    async link_closed(step) {
        const link = this.links[step.name];
        if (!await this.wait(() => link.ended || this.gone, step)) return { error: null };
        return { error: link.ended ? link.errored : this.failure };
    }

    async end(step) {
        let ended = false;
        this.session.on('session_close', () => { ended = true; });
        this.session.close();
        await this.wait(() => ended || this.gone, step);
        this.session = this.connection.create_session();
        this.session.open();
        return { answered: ended };
    }

    async close(step) {
        this.reconnects = false;
        this.connection.close();
        await this.wait(() => this.closed || this.gone, step);
        const answered = this.closed;
        await this.wait(() => this.gone || this.connection.is_closed(), step);
        return { answered };
    }

    async connection_closed(step) {
        await this.wait(() => this.closed || this.gone, step);
        return { closed: this.closed || this.gone, error: this.failure };
    }

    async idle(step) {
        await this.wait(() => this.gone, { within_ms: step.ms });
        return { open: !this.gone };
    }
}

// A message as an application makes it.
function made(step) {
    const message = { durable: Boolean(step.durable), body: step.text };
    if (step.body !== undefined) {
        message.body = rhea.message.data_section(Buffer.from(step.body, 'hex'));
    }
    if (step.reply_to) message.reply_to = step.reply_to;
    if (step.correlation) message.correlation_id = step.correlation;
    if (step.duplicate_id) {
        message.application_properties = { _AMQ_DUPL_ID: step.duplicate_id };
    }
    return message;
}

// A message as an application reads it.
function read(message) {
    const { reply_to, correlation_id, message_annotations } = message;
    const annotations = {};
    for (const [name, value] of Object.entries(message_annotations || {})) {
        annotations[name] = String(value);
    }
    const answer = { reply_to, correlation: correlation_id, annotations };
    if (typeof message.body === 'string') answer.text = message.body;
    else answer.body = message.body.content.toString('hex');
    return answer;
}

function said(error) {
    if (!error) return null;
    return { condition: String(error.condition), description: String(error.description) };
}

async function main() {
    const remote = new Remote();
    for await (const line of readline.createInterface({ input: process.stdin })) {
        const step = JSON.parse(line);
        const answer = await remote[step.do.replace(/-/g, '_')](step);
        process.stdout.write(JSON.stringify(answer) + '\n');
    }
    process.exit(0);
}

main();
