//! A client with a mind of its own: it produces, consumes, changes its mind, and leaves.
//!
//! ```text
//!   Work    links come and go; letters, credit, drains, every outcome, some of them waiting for
//!           the broker's settlement; a queue of its own, for replies, that goes with its link
//!   Drain   the only consumer of every queue: accepts everything, and waits for each settlement
//!   Leave   ends or closes in order, and waits for the answer
//! ```
//! What it does is reported as [`Seen`]; what it may do is in [`Habits`], drawn from the seed.
//!
//! Invariant: an outcome counts as confirmed only by the broker's own answer to it, or to a detach,
//! end or close that was sent after it.

use std::collections::{BTreeMap, BTreeSet};

use broker::settings::{DEAD_LETTER_ADDRESS, EXPIRY_ADDRESS};

use crate::check::{LinkKey, Parting, Seen};
use crate::hits::{Hit, Hits};
use crate::letter::{self, Form, Later, LetterId};
use crate::rng::Rng;
use crate::wire::{Endpoint, Heard, Hello, Verdict};

/// What clients share: numbers, and what was sent.
#[derive(Debug, Default)]
pub struct Desk {
    next_letter: u64,
    next_link: u64,
    next_note: u32,
    forms: BTreeMap<LetterId, Form>,
    /// Letters with duplicate ids, by queue.
    identified: BTreeMap<usize, Vec<LetterId>>,
    /// The time of day.
    pub unix_ms: u64,
    delivered: BTreeSet<LetterId>,
    /// Letters sent.
    pub sent: u64,
    /// Deliveries, repeated ones counted again.
    pub deliveries: u64,
}

impl Desk {
    fn link(&mut self) -> LinkKey {
        self.next_link += 1;
        LinkKey(self.next_link)
    }

    fn letter(&mut self, queue: usize, form: Form) -> LetterId {
        self.next_letter += 1;
        let id = LetterId(self.next_letter);
        self.forms.insert(id, form);
        if form.identified {
            self.identified.entry(queue).or_default().push(id);
        }
        id
    }

    fn note(&mut self) -> u32 {
        self.next_note += 1;
        self.next_note
    }

    /// The letter that these bytes are, if its bare message is what was sent.
    fn recognise(&self, message: &[u8]) -> Result<(LetterId, u32, bool), String> {
        let (header, forwarded) = letter::bare(message)?;
        let id = letter::find(forwarded).ok_or("a delivery that is no letter")?;
        let form = self.forms.get(&id).ok_or_else(|| format!("{id:?} was never sent"))?;
        let sent = letter::write(id, *form);
        let (_, expected) = letter::bare(&sent)?;
        if expected != forwarded {
            return Err(format!("{id:?} came back changed"));
        }
        let count = header.delivery_count.unwrap_or(0);
        Ok((id, count, header.first_acquirer.unwrap_or(false)))
    }
}

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct Habits {
    /// What it says when it connects.
    pub hello: Hello,
    /// Links it likes to have.
    pub links: usize,
    /// Of a thousand links, so many produce.
    pub produces: u32,
    /// Letters at once, at most.
    pub burst: u64,
    /// Of a thousand letters, so many are larger than a fragment.
    pub large: u32,
    /// Of a thousand letters, so many have some kilobytes.
    pub medium: u32,
    /// Of a thousand of these and the larger ones, so many are sent slowly, in many frames.
    pub slow: u32,
    /// Of a thousand steps of such a one, so many give it up.
    pub gives_up: u32,
    /// The most credit that it gives at once.
    pub credit_max: u64,
    /// Of a thousand letters, so many are sent settled.
    pub presettled: u32,
    /// Of a thousand outcomes, so many wait for the broker's settlement.
    pub waits: u32,
    /// Of a thousand verdicts, so many give the message back.
    pub gives_back: u32,
    /// Of a thousand ticks, so many detach a link.
    pub detaches: u32,
    /// Of a thousand ticks, so many close the connection in order.
    pub closes: u32,
    /// Of a thousand ticks, so many cut it.
    pub cuts: u32,
    /// Of a thousand ticks of a consumer, so many do anything about its deliveries.
    pub diligence: u32,
    /// Names of the queues.
    pub queues: Vec<String>,
    /// Of a thousand letters, so many expire.
    pub mortal: u32,
    /// Of a thousand letters, so many have a duplicate id.
    pub identified: u32,
    /// Of a thousand letters, so many are such as were sent before: at best those that have had no
    /// answer.
    pub repeats: u32,
    /// The last queue lags: it gets few letters, and nobody takes them while there is work.
    pub lags: bool,
    /// Of a thousand links that consume, so many take what died.
    pub undertakes: u32,
    /// Of a thousand letters, so many are to be delivered later.
    pub delays: u32,
    /// Of a thousand letters, so many have a priority.
    pub prefers: u32,
    /// Of a thousand `modified` outcomes, so many annotate the message.
    pub notes: u32,
    /// Of a thousand links that produce, so many relay.
    pub relays: u32,
    /// Of a thousand links that consume, so many only look.
    pub browses: u32,
    /// Of a thousand ticks, so many go on with a queue for replies: it is made, filled, left.
    pub replies: u32,
}

/// The links of the queue for replies: from it, and to it.
const REPLIES: [u32; 2] = [40, 41];

/// How far a queue for replies is. Nobody takes what is in it, and it is none of the checks'
/// business: nothing is promised beyond the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Replies {
    #[default]
    None,
    Asked,
    Made(String),
    Used,
    Left,
}

/// Of a thousand turns of a producer to the queue that lags, so many bring letters.
const LAGGARDS: u32 = 15;

/// Where what dies goes.
pub(crate) const GRAVES: [&str; 2] = [DEAD_LETTER_ADDRESS, EXPIRY_ADDRESS];

impl Habits {
    /// It sends small letters, very many, and holds what it gets until it goes.
    pub fn hoard(&mut self) {
        (self.burst, self.medium, self.large) = (200, 0, 0);
        (self.diligence, self.credit_max, self.browses) = (0, 3000, 0);
        (self.detaches, self.closes, self.cuts) = (10, 5, 5);
        self.hello.incoming_window = 4000;
    }

    /// The name of a queue, by its number: those for what died come last.
    fn queue(&self, queue: usize) -> &str {
        match queue.checked_sub(self.queues.len()) {
            Some(grave) => GRAVES[grave],
            None => &self.queues[queue],
        }
    }

    fn lags(&self, queue: usize) -> bool {
        self.lags && queue + 1 == self.queues.len()
    }

    fn is_grave(&self, queue: usize) -> bool {
        queue >= self.queues.len()
    }
}

/// What a client is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It does its work.
    Work,
    /// It empties every queue.
    Drain,
    /// It goes.
    Leave,
}

/// What a client asks of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    None,
    /// A connection, to any shard.
    Connect,
    /// That its connection be cut.
    Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Produce,
    /// Each letter says where it goes.
    Relay,
    Consume,
    /// Nothing is taken.
    Browse,
}

#[derive(Debug)]
struct Link {
    key: LinkKey,
    job: Job,
    queue: usize,
    since_unix_ms: u64,
    up: bool,
    detaching: bool,
    draining: bool,
    credit: u32,
    /// Sent, and not answered.
    unanswered: BTreeMap<u32, (LetterId, usize)>,
    /// Delivered, without a verdict.
    held: Vec<(u32, LetterId)>,
    /// Judged; the broker is to settle them.
    waiting: BTreeMap<u32, (LetterId, Verdict)>,
    /// Judged and settled; confirmed by the answer to a detach, end or close.
    settled: Vec<(LetterId, Verdict)>,
}

/// A client.
#[derive(Debug)]
pub struct Client {
    name: String,
    rng: Rng,
    habits: Habits,
    mode: Mode,
    endpoint: Option<Endpoint>,
    ready: bool,
    leaving: bool,
    over: bool,
    links: BTreeMap<u32, Link>,
    /// What went without an answer, and where it went.
    unknown: Vec<(usize, LetterId)>,
    replies: Replies,
}

impl Client {
    /// A client that has not connected.
    pub fn new(index: usize, rng: Rng, habits: Habits) -> Self {
        Self {
            name: format!("client-{index}"),
            rng,
            habits,
            mode: Mode::Work,
            endpoint: None,
            ready: false,
            leaving: false,
            over: false,
            links: BTreeMap::new(),
            unknown: Vec::new(),
            replies: Replies::None,
        }
    }

    /// What it is to be about from now on.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Whether it has a connection.
    pub fn is_connected(&self) -> bool {
        self.endpoint.is_some()
    }

    /// Whether both sides have said close: it hangs up.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether it holds nothing: no delivery without a confirmed outcome.
    pub fn is_idle(&self) -> bool {
        self.links.values().all(|link| link.held.is_empty() && link.waiting.is_empty())
    }

    /// Whether it waits for an answer to a detach, a drain, an end or a close.
    pub fn is_parting(&self) -> bool {
        self.leaving || self.links.values().any(|link| link.detaching || link.draining)
    }

    /// The connection that was wished for is there.
    pub fn connected(&mut self) {
        self.endpoint = Some(Endpoint::new(&self.name, self.habits.hello));
        self.ready = false;
        self.leaving = false;
        self.over = false;
        self.links.clear();
        self.replies = Replies::None;
    }

    /// The connection is gone: what was under way stays unknown. The broker lives and finds it
    /// broken off, or has ended it, or ends itself.
    pub fn lost(&mut self, breaks_off: bool, out: &mut Vec<Seen>) {
        let mut queues = BTreeSet::new();
        for link in self.links.values() {
            let counts = breaks_off && link.job == Job::Consume && queues.insert(link.queue);
            let broke_off = counts.then_some(link.queue);
            out.push(Seen::Parted(Parting { link: link.key, broke_off }));
        }
        self.endpoint = None;
        for link in std::mem::take(&mut self.links).into_values() {
            self.unanswered(&link);
        }
    }

    /// All links are on their way out.
    fn part(&self, out: &mut Vec<Seen>) {
        let goes = |link: &Link| Seen::Parted(Parting { link: link.key, broke_off: None });
        out.extend(self.links.values().map(goes));
    }

    /// A link is gone: of what it sent nobody knows what became.
    fn unanswered(&mut self, link: &Link) {
        self.unknown.extend(link.unanswered.values().map(|(letter, queue)| (*queue, *letter)));
    }

    /// Bytes for the broker.
    pub fn take_output(&mut self) -> Vec<u8> {
        self.endpoint.as_mut().map_or_else(Vec::new, Endpoint::take_output)
    }

    // ---- What comes ----------------------------------------------------------------------------

    /// Takes bytes from the broker.
    ///
    /// # Errors
    /// The rule that the broker broke.
    pub fn hear(
        &mut self,
        bytes: &[u8],
        desk: &mut Desk,
        hits: &mut Hits,
        out: &mut Vec<Seen>,
    ) -> Result<(), String> {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.hear(bytes);
        }
        while let Some(heard) = self.endpoint.as_mut().and_then(Endpoint::poll_heard) {
            self.take(heard, desk, hits, out)?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        heard: Heard,
        desk: &mut Desk,
        hits: &mut Hits,
        out: &mut Vec<Seen>,
    ) -> Result<(), String> {
        match heard {
            Heard::Ready => self.ready = true,
            Heard::Attached { handle } => {
                if let Some(link) = self.links.get_mut(&handle) {
                    link.up = true;
                }
            }
            Heard::Made { address, .. } => self.replies = Replies::Made(address),
            Heard::Credit { .. } => {}
            Heard::Delivery { handle, id, settled, message } => {
                self.delivered(handle, id, settled, &message, desk, hits, out)?;
            }
            Heard::Outcome { first, last, verdict } => {
                self.answered(first, last, verdict, hits, out)?;
            }
            Heard::Settled { first, last } => {
                for link in self.links.values_mut() {
                    for id in serial_range(first, last) {
                        if let Some((letter, verdict)) = link.waiting.remove(&id) {
                            confirm(letter, verdict, hits, out);
                        }
                    }
                }
            }
            Heard::Drained { handle } => {
                hits.add(Hit::Drained);
                if let Some(link) = self.links.get_mut(&handle) {
                    link.draining = false;
                    link.credit = 0;
                }
            }
            Heard::Detached { handle, .. } if REPLIES.contains(&handle) => {
                if handle == REPLIES[0] {
                    self.replies = Replies::None;
                }
            }
            Heard::Detached { handle, answered, error } => {
                permitted(error.as_deref())?;
                if let Some(link) = self.links.remove(&handle) {
                    out.push(Seen::Parted(Parting { link: link.key, broke_off: None }));
                    self.unanswered(&link);
                    if answered && error.is_none() {
                        confirm_all(link, hits, out);
                    }
                }
            }
            Heard::Ended { answered } => {
                self.part(out);
                let links = std::mem::take(&mut self.links);
                links.values().for_each(|link| self.unanswered(link));
                if answered {
                    links.into_values().for_each(|link| confirm_all(link, hits, out));
                }
                if let Some(endpoint) = &mut self.endpoint {
                    endpoint.close();
                }
            }
            Heard::Closed { answered, error } => {
                permitted(error.as_deref())?;
                self.over = true;
                self.part(out);
                let links = std::mem::take(&mut self.links);
                links.values().for_each(|link| self.unanswered(link));
                if answered && error.is_none() {
                    links.into_values().for_each(|link| confirm_all(link, hits, out));
                }
            }
            Heard::Broken(what) => return Err(format!("the broker broke the protocol: {what}")),
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "a delivery, and the three places it is told to")]
    fn delivered(
        &mut self,
        handle: u32,
        id: u32,
        settled: bool,
        message: &[u8],
        desk: &mut Desk,
        hits: &mut Hits,
        out: &mut Vec<Seen>,
    ) -> Result<(), String> {
        if settled {
            return Err("a delivery came settled, on a link that did not ask for it".to_owned());
        }
        let (letter, delivery_count, first_acquirer) = desk.recognise(message)?;
        let link = self.links.get_mut(&handle).ok_or("a delivery on a link that is gone")?;
        link.credit = link.credit.saturating_sub(1);
        let (key, grave) = (link.key, self.habits.is_grave(link.queue));
        if link.job == Job::Browse {
            hits.add(Hit::Browsed);
            let since_unix_ms = link.since_unix_ms;
            out.push(Seen::Browsed { letter, link: key, grave, since_unix_ms });
            if let Some(endpoint) = &mut self.endpoint {
                endpoint.dispose(id, id, Verdict::Accepted, true);
            }
            return Ok(());
        }
        desk.deliveries += 1;
        if !desk.delivered.insert(letter) {
            hits.add(Hit::Redelivered);
        }
        let alone = self.mode == Mode::Drain;
        link.held.push((id, letter));
        if grave {
            hits.add(if link.queue == self.habits.queues.len() {
                Hit::Buried
            } else {
                Hit::Expired
            });
        }
        if desk.forms[&letter].priority.is_some() {
            hits.add(Hit::Prioritised);
        }
        let note = letter::note(message);
        if note.is_some() {
            hits.add(Hit::Noted);
        }
        let link = key;
        let seen =
            Seen::Delivered { letter, link, delivery_count, first_acquirer, alone, grave, note };
        out.push(seen);
        Ok(())
    }

    fn answered(
        &mut self,
        first: u32,
        last: u32,
        verdict: Option<Verdict>,
        hits: &mut Hits,
        out: &mut Vec<Seen>,
    ) -> Result<(), String> {
        for id in serial_range(first, last) {
            let found = self.links.values_mut().find_map(|link| link.unanswered.remove(&id));
            let Some((letter, _)) = found else { continue };
            match verdict {
                Some(Verdict::Accepted) => {
                    hits.add(Hit::Accepted);
                    out.push(Seen::Accepted(letter));
                }
                Some(Verdict::Rejected | Verdict::Released) => {
                    hits.add(Hit::Refused);
                    out.push(Seen::Refused(letter));
                }
                Some(Verdict::Modified { .. }) | None => {
                    return Err(format!("{letter:?} was answered with {verdict:?}"));
                }
            }
        }
        Ok(())
    }

    // ---- What it does --------------------------------------------------------------------------

    /// Does something, or nothing.
    pub fn tick(&mut self, desk: &mut Desk, hits: &mut Hits, out: &mut Vec<Seen>) -> Wish {
        let Some(endpoint) = &mut self.endpoint else {
            return if self.mode == Mode::Leave { Wish::None } else { Wish::Connect };
        };
        if !self.ready || self.leaving || self.over {
            return Wish::None;
        }
        match self.mode {
            Mode::Leave => {
                endpoint.go_on(None);
                if !endpoint.is_waiting() {
                    self.leaving = true;
                    if self.rng.chance(300) {
                        endpoint.end()
                    } else {
                        endpoint.close()
                    }
                    self.part(out);
                }
                Wish::None
            }
            Mode::Drain => {
                endpoint.go_on(None);
                self.tick_drain(desk, out);
                Wish::None
            }
            Mode::Work => self.tick_work(desk, hits, out),
        }
    }

    fn tick_drain(&mut self, desk: &mut Desk, out: &mut Vec<Seen>) {
        for queue in 0..self.habits.queues.len() + GRAVES.len() {
            if !self.links.values().any(|link| link.queue == queue) {
                self.attach(desk, Job::Consume, queue);
            }
        }
        let handles: Vec<u32> = self.links.keys().copied().collect();
        for handle in handles {
            self.grant(handle, 50, false);
            let held = self.links.get(&handle).map_or(0, |link| link.held.len());
            self.judge(handle, held, Verdict::Accepted, false, out);
        }
    }

    fn tick_work(&mut self, desk: &mut Desk, hits: &mut Hits, out: &mut Vec<Seen>) -> Wish {
        if self.rng.chance(self.habits.cuts) {
            return Wish::Cut;
        }
        self.dawdle(hits);
        if self.habits.replies > 0 && self.rng.chance(self.habits.replies) {
            self.tick_replies(hits);
        }
        let waits = |endpoint: &Endpoint| endpoint.is_waiting() && !endpoint.is_held();
        let waiting = self.endpoint.as_ref().is_some_and(waits);
        if self.rng.chance(self.habits.closes) && !waiting {
            self.leaving = true;
            if let Some(endpoint) = &mut self.endpoint {
                endpoint.close();
            }
            self.part(out);
            return Wish::None;
        }
        if self.links.len() < self.habits.links && self.rng.chance(500) {
            let produces = self.rng.chance(self.habits.produces);
            let mut queue = self.rng.index(self.habits.queues.len());
            if !produces && self.rng.chance(self.habits.undertakes) {
                queue = self.habits.queues.len() + self.rng.index(GRAVES.len());
            }
            if !produces && self.habits.lags(queue) {
                queue = 0;
            }
            let job = match produces {
                true if self.rng.chance(self.habits.relays) => Job::Relay,
                true => Job::Produce,
                false if self.rng.chance(self.habits.browses) => Job::Browse,
                false => Job::Consume,
            };
            self.attach(desk, job, queue);
        }
        let handles: Vec<u32> = self.links.keys().copied().collect();
        for handle in handles {
            let Some(link) = self.links.get(&handle) else { continue };
            if !link.up || link.detaching {
                continue;
            }
            let job = link.job;
            match job {
                Job::Produce | Job::Relay => self.produce(handle, desk, hits, out),
                Job::Consume | Job::Browse => self.consume(handle, desk, out),
            }
            let waiting = self.endpoint.as_ref().is_some_and(waits);
            if self.rng.chance(self.habits.detaches) && !waiting {
                let closed = self.rng.chance(600);
                self.detach(handle, closed, out);
            }
        }
        Wish::None
    }

    /// Goes on with the queue for replies.
    fn tick_replies(&mut self, hits: &mut Hits) {
        let Some(endpoint) = &mut self.endpoint else { return };
        let [from, to] = REPLIES;
        self.replies = match std::mem::take(&mut self.replies) {
            Replies::None => {
                endpoint.attach_dynamic(from, &format!("{}-replies", self.name));
                Replies::Asked
            }
            Replies::Made(address) => {
                endpoint.attach_sender(to, &format!("{}-to-replies", self.name), Some(&address));
                Replies::Used
            }
            Replies::Used if self.rng.chance(800) || endpoint.is_waiting() => {
                while endpoint.can_send(to) && self.rng.chance(700) {
                    endpoint.send(to, filler(self.rng.between(10, 3000) as usize), true);
                }
                Replies::Used
            }
            Replies::Used => {
                hits.add(Hit::RepliesLeft);
                endpoint.detach(from, true);
                Replies::Left
            }
            waits @ (Replies::Asked | Replies::Left) => waits,
        };
    }

    /// Goes on with what is sent slowly, or gives it up.
    fn dawdle(&mut self, hits: &mut Hits) {
        let Some(endpoint) = self.endpoint.as_mut().filter(|endpoint| endpoint.is_held()) else {
            return;
        };
        if self.rng.chance(self.habits.gives_up) {
            if let Some((handle, id)) = endpoint.abort() {
                hits.add(Hit::GivenUp);
                if let Some(link) = self.links.get_mut(&handle) {
                    link.unanswered.remove(&id);
                }
            }
        } else if self.rng.chance(400) {
            endpoint.go_on(Some(self.rng.between(1, 3) as u32));
        }
    }

    fn attach(&mut self, desk: &mut Desk, job: Job, queue: usize) {
        let Some(endpoint) = &mut self.endpoint else { return };
        let Some(handle) = (0..32).find(|handle| !self.links.contains_key(handle)) else { return };
        let address = self.habits.queue(queue);
        let name = format!("{}-{job:?}-{handle}", self.name);
        match job {
            Job::Produce => endpoint.attach_sender(handle, &name, Some(address)),
            Job::Relay => endpoint.attach_sender(handle, &name, None),
            Job::Consume => endpoint.attach_receiver(handle, &name, address),
            Job::Browse => endpoint.attach_browser(handle, &name, address),
        }
        let link = Link {
            key: desk.link(),
            job,
            queue,
            since_unix_ms: desk.unix_ms,
            up: false,
            detaching: false,
            draining: false,
            credit: 0,
            unanswered: BTreeMap::new(),
            held: Vec::new(),
            waiting: BTreeMap::new(),
            settled: Vec::new(),
        };
        self.links.insert(handle, link);
    }

    fn detach(&mut self, handle: u32, closed: bool, out: &mut Vec<Seen>) {
        let Some(link) = self.links.get_mut(&handle) else { return };
        link.detaching = true;
        out.push(Seen::Parted(Parting { link: link.key, broke_off: None }));
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.detach(handle, closed);
        }
    }

    fn produce(&mut self, handle: u32, desk: &mut Desk, hits: &mut Hits, out: &mut Vec<Seen>) {
        let Some(link) = self.links.get(&handle) else { return };
        let (job, queue) = (link.job, link.queue);
        if self.habits.lags(queue) && !self.rng.chance(LAGGARDS) {
            return;
        }
        for _ in 0..self.rng.between(0, self.habits.burst) {
            let to = (job == Job::Relay).then(|| self.relays_to());
            let queue = to.unwrap_or(queue);
            if !self.endpoint.as_ref().is_some_and(|endpoint| endpoint.can_send(handle)) {
                return;
            }
            let repeated = if to.is_none() { self.repeated(queue, desk) } else { None };
            let letter = match repeated {
                Some(letter) => {
                    hits.add(Hit::Repeated);
                    letter
                }
                None => {
                    let form = Form { to, ..self.form(desk, hits) };
                    desk.sent += 1;
                    if to.is_some() {
                        hits.add(Hit::Relayed);
                    }
                    desk.letter(queue, form)
                }
            };
            let form = desk.forms[&letter];
            let settled = self.rng.chance(self.habits.presettled);
            let is_slow = form.bytes > 4000 && self.rng.chance(self.habits.slow);
            let slow = is_slow.then(|| self.rng.between(500, 4000) as usize);
            let (Some(link), Some(endpoint)) = (self.links.get_mut(&handle), &mut self.endpoint)
            else {
                return;
            };
            let bytes = letter::write(letter, form);
            let id = match slow.filter(|step| bytes.len() > 2 * step) {
                Some(step) => {
                    hits.add(Hit::SentSlowly);
                    endpoint.send_slowly(handle, bytes, settled, step)
                }
                None => endpoint.send(handle, bytes, settled),
            };
            if !settled {
                link.unanswered.insert(id, (letter, queue));
            }
            let (link, expiry_unix_ms) = (link.key, form.expiry_unix_ms);
            let again = repeated.is_some();
            let priority = form.priority;
            let (later, sent_unix_ms) = (form.later, desk.unix_ms);
            out.push(Seen::Sent {
                letter,
                link,
                queue,
                settled,
                again,
                expiry_unix_ms,
                priority,
                later,
                sent_unix_ms,
            });
        }
    }

    /// Where the next letter of a link that relays goes.
    fn relays_to(&mut self) -> usize {
        let queue = self.rng.index(self.habits.queues.len());
        if self.habits.lags(queue) && !self.rng.chance(LAGGARDS) { 0 } else { queue }
    }

    /// What a new letter is like.
    fn form(&mut self, desk: &Desk, hits: &mut Hits) -> Form {
        let bytes = if self.rng.chance(self.habits.large) {
            hits.add(Hit::LargeMessage);
            self.rng.between(66_000, 150_000)
        } else if self.rng.chance(self.habits.medium) {
            self.rng.between(600, 6000)
        } else {
            self.rng.between(14, 600)
        };
        let mortal = self.rng.chance(self.habits.mortal);
        let lives_ms = mortal.then(|| self.rng.between(1, 60));
        let expiry_unix_ms = lives_ms.map(|lives_ms| desk.unix_ms + lives_ms);
        let identified = self.rng.chance(self.habits.identified);
        let priority = self.rng.chance(self.habits.prefers).then(|| self.rng.below(10) as u8);
        let waits = self.habits.delays > 0 && self.rng.chance(self.habits.delays);
        let later = waits.then(|| {
            let delay_ms = self.rng.between(1, 80);
            if self.rng.chance(500) {
                Later::At(desk.unix_ms + delay_ms)
            } else {
                Later::After(delay_ms)
            }
        });
        Form { bytes: bytes as usize, expiry_unix_ms, identified, priority, to: None, later }
    }

    /// A letter that is sent again: one without an answer, or any one of anybody's.
    fn repeated(&mut self, queue: usize, desk: &Desk) -> Option<LetterId> {
        if self.habits.repeats == 0 || !self.rng.chance(self.habits.repeats) {
            return None;
        }
        self.unknown.retain(|(_, letter)| desk.forms[letter].identified);
        if let Some(at) = self.unknown.iter().position(|(to, _)| *to == queue) {
            return Some(self.unknown.remove(at).1);
        }
        let known = desk.identified.get(&queue).filter(|known| !known.is_empty())?;
        Some(known[self.rng.index(known.len())])
    }

    fn consume(&mut self, handle: u32, desk: &mut Desk, out: &mut Vec<Seen>) {
        if self.rng.chance(400) {
            let credit = self.rng.between(1, self.habits.credit_max) as u32;
            let drain = self.rng.chance(80);
            self.grant(handle, credit, drain);
        }
        if !self.rng.chance(self.habits.diligence) {
            return;
        }
        let Some(link) = self.links.get(&handle) else { return };
        let (held, grave) = (link.held.len(), self.habits.is_grave(link.queue));
        if held == 0 {
            return;
        }
        let count = self.rng.between(1, held as u64) as usize;
        let verdict = if self.rng.chance(self.habits.gives_back) {
            let failed = self.rng.chance(600);
            let not_here = self.rng.chance(100);
            if self.rng.chance(400) {
                Verdict::Released
            } else {
                let note = self.rng.chance(self.habits.notes).then(|| desk.note());
                Verdict::Modified { failed, not_here, note }
            }
        } else if self.rng.chance(50) && !grave {
            Verdict::Rejected
        } else {
            Verdict::Accepted
        };
        let settled = !self.rng.chance(self.habits.waits);
        self.judge(handle, count, verdict, settled, out);
    }

    fn grant(&mut self, handle: u32, credit: u32, drain: bool) {
        let Some(link) = self.links.get_mut(&handle) else { return };
        if !link.up || link.detaching || link.draining || link.credit >= credit {
            return;
        }
        link.credit = credit;
        link.draining = drain;
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.grant(handle, credit, drain);
        }
    }

    /// Judges the oldest deliveries of a link, as ranges where their numbers allow it.
    fn judge(
        &mut self,
        handle: u32,
        count: usize,
        verdict: Verdict,
        settled: bool,
        out: &mut Vec<Seen>,
    ) {
        let (Some(link), Some(endpoint)) = (self.links.get_mut(&handle), &mut self.endpoint) else {
            return;
        };
        if link.detaching {
            return;
        }
        let mut range: Option<(u32, u32)> = None;
        for (id, letter) in link.held.drain(..count) {
            out.push(Seen::Judged { letter, verdict });
            if settled {
                link.settled.push((letter, verdict));
            } else {
                link.waiting.insert(id, (letter, verdict));
            }
            range = match range {
                Some((first, last)) if last.wrapping_add(1) == id => Some((first, id)),
                Some((first, last)) => {
                    endpoint.dispose(first, last, verdict, settled);
                    Some((id, id))
                }
                None => Some((id, id)),
            };
        }
        if let Some((first, last)) = range {
            endpoint.dispose(first, last, verdict, settled);
        }
    }
}

/// A message that is no letter.
fn filler(bytes: usize) -> Vec<u8> {
    let len = u32::try_from(bytes).expect("it is short").to_be_bytes();
    [&[0, 0x53, 0x75, 0xb0][..], &len, &vec![0; bytes]].concat()
}

fn confirm(letter: LetterId, verdict: Verdict, hits: &mut Hits, out: &mut Vec<Seen>) {
    hits.add(Hit::Confirmed);
    out.push(Seen::Confirmed { letter, verdict });
}

fn confirm_all(link: Link, hits: &mut Hits, out: &mut Vec<Seen>) {
    for (letter, verdict) in link.settled.into_iter().chain(link.waiting.into_values()) {
        confirm(letter, verdict, hits, out);
    }
}

/// Errors that a broker may give to a client that did nothing wrong.
fn permitted(error: Option<&str>) -> Result<(), String> {
    let permitted =
        ["amqp:connection:forced", "amqp:resource-limit-exceeded", "amqp:resource-deleted"];
    match error {
        Some(error) if !permitted.iter().any(|condition| error.starts_with(condition)) => {
            Err(format!("the broker gave an error without cause: {error}"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Delivery numbers from the first to the last, which wrap.
fn serial_range(first: u32, last: u32) -> impl Iterator<Item = u32> {
    (0..=last.wrapping_sub(first).min(100_000)).map(move |step| first.wrapping_add(step))
}
