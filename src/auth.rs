//! Who may log in: password hashes from the configuration, verified off the shards' threads.
//!
//! ```text
//!   shard ── Job ──▶ [ line.rs ] ──▶ verifier threads ── accepted ─────▶ the job's answer
//!                    full: Busy, at once   └── refused ─▶ pace.rs ─ later ─▶
//!
//!   EXTERNAL       the shard itself: the TLS handshake has named the user (tls.rs)
//!   SCRAM-SHA-…    scram.rs, where every user with a password has such a hash
//!   PLAIN          argon2 or SCRAM's hash; over TLS, from loopback, or where it is allowed
//!   ANONYMOUS      where there are no users
//! ```
//! Verifying costs tens of milliseconds and 19 MiB on purpose, so a shard never does it, and only
//! [`VERIFIERS`] threads do: a flood of log-ins slows log-ins and nothing else. The addresses from
//! which they come are served in turn.
//!
//! Invariants: an unknown user costs as much as a known one (the password is then verified against
//! the costliest hash there is, and refused whatever comes out), and both are refused at a time
//! that is counted from the attempt's arrival; a password is wiped after use and never logged;
//! costs in the configuration are bounded, so a hash cannot eat the machine. A mechanism is offered
//! only where every user with a password can use it: clients choose the strongest and do not try a
//! second one.
//!
//! Failure: a full queue answers [`AuthVerdict::Busy`]; a hash that cannot be read is an error of
//! the configuration, found before the start.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use crate::config::{Config, User};
use crate::driver::clock;
use crate::fatal::{Cause, Failure};
use crate::machine;
use amqp::connection::{Sasl, SaslScram};
use amqp::sasl::{Mechanism, Mechanisms};
use argon2::password_hash::phc;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Argon2, Params};
use broker::access::LogIn;
use broker::event::{Attempt, AuthVerdict};

pub(crate) mod base64;
mod line;
mod pace;
mod scram;

use line::{Line, Taken, line};
pub(crate) use pace::address;
use pace::{Pace, Refusal};
pub(crate) use scram::Conversation;
use scram::{First, Hash, Verifier};

/// Threads that verify.
const VERIFIERS: usize = 2;

/// Log-ins that may wait: some seconds' worth, well within the time that a handshake has.
const JOBS_MAX: usize = 256;

/// The most memory that a configured hash may cost, in KiB.
const HASH_KIB_MAX: u32 = 256 * 1024;

/// The most passes that a configured hash may cost.
const HASH_PASSES_MAX: u32 = 16;

/// Bytes of our half of a SCRAM nonce.
const NONCE_BYTES: usize = 18;

/// A hash as `laelaps user hash` prints it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum PasswordHash {
    /// An argon2 PHC string within the bounds of cost.
    Argon2 { phc: Box<phc::PasswordHash>, cost: u64 },
    /// What SCRAM needs; PLAIN can be verified with it too.
    Scram(Verifier),
}

impl FromStr for PasswordHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("SCRAM-") {
            return text.parse().map(Self::Scram);
        }
        let wrong = |why: &dyn fmt::Display| {
            format!("password-hash is not what `laelaps user hash` prints: {why}")
        };
        let phc = phc::PasswordHash::new(text).map_err(|error| wrong(&error))?;
        if !phc.algorithm.as_str().starts_with("argon2") {
            return Err(wrong(&"it is not an argon2 hash"));
        }
        if phc.salt.is_none() || phc.hash.is_none() {
            return Err(wrong(&"its salt or its hash is missing"));
        }
        let params = Params::try_from(&phc).map_err(|error| wrong(&error))?;
        if params.m_cost() > HASH_KIB_MAX || params.t_cost() > HASH_PASSES_MAX {
            return Err(wrong(&format!(
                "it costs {} KiB and {} passes; at most {HASH_KIB_MAX} and {HASH_PASSES_MAX}",
                params.m_cost(),
                params.t_cost()
            )));
        }
        let cost = u64::from(params.m_cost()) * u64::from(params.t_cost());
        Ok(Self::Argon2 { phc: Box::new(phc), cost })
    }
}

impl PasswordHash {
    fn matches(&self, password: &[u8]) -> bool {
        match self {
            Self::Argon2 { phc, .. } => Argon2::default().verify_password(password, &**phc).is_ok(),
            Self::Scram(verifier) => verifier.matches(password),
        }
    }

    fn cost(&self) -> u64 {
        match self {
            Self::Argon2 { cost, .. } => *cost,
            // Each round is two blocks of a hash; argon2's unit is a pass over a KiB.
            Self::Scram(verifier) => u64::from(verifier.rounds.get()) / 4,
        }
    }

    fn scram(&self, hash: Hash) -> Option<&Verifier> {
        match self {
            Self::Scram(verifier) => Some(verifier).filter(|verifier| verifier.hash == hash),
            Self::Argon2 { .. } => None,
        }
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

/// One hash or several of the same password, for several mechanisms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PasswordHashes(Vec<PasswordHash>);

impl PasswordHashes {
    /// Whether there is no password to log in with.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn scram(&self, hash: Hash) -> Option<&Verifier> {
        self.0.iter().find_map(|one| one.scram(hash))
    }

    fn scrams(&self) -> impl Iterator<Item = &Verifier> {
        self.0.iter().filter_map(|one| match one {
            PasswordHash::Scram(verifier) => Some(verifier),
            PasswordHash::Argon2 { .. } => None,
        })
    }

    /// What PLAIN is verified with.
    fn plain(&self) -> Option<&PasswordHash> {
        self.0.iter().max_by_key(|hash| hash.cost())
    }
}

impl<'de> serde::Deserialize<'de> for PasswordHashes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged, expecting = "password-hash is a string, or a list of strings")]
        enum Given {
            One(String),
            Several(Vec<String>),
        }
        let texts = match Given::deserialize(deserializer)? {
            Given::One(text) => vec![text],
            Given::Several(texts) => texts,
        };
        let hashes: Result<_, String> = texts.iter().map(|text| text.parse()).collect();
        hashes.map(Self).map_err(serde::de::Error::custom)
    }
}

/// What a password is to be hashed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum HashFor {
    /// PLAIN; costly to try out
    Argon2id,
    /// SCRAM-SHA-256, and PLAIN
    #[value(name = "scram-sha-256")]
    ScramSha256,
    /// SCRAM-SHA-512, and PLAIN
    #[value(name = "scram-sha-512")]
    ScramSha512,
}

/// Hash a password for the configuration.
///
/// # Errors
/// No randomness for the salt, or the password cannot be used with that.
pub(crate) fn hash(password: &str, wanted: HashFor) -> Result<String, Failure> {
    let scram = |hash| {
        let made = Verifier::make(hash, password);
        made.map(|verifier| verifier.to_string()).map_err(Failure::command)
    };
    match wanted {
        HashFor::Argon2id => Argon2::default()
            .hash_password(password.as_bytes())
            .map(|hash| hash.to_string())
            .map_err(|error| Failure::new(Cause::ResourceRefused, format!("cannot hash: {error}"))),
        HashFor::ScramSha256 => scram(Hash::Sha256),
        HashFor::ScramSha512 => scram(Hash::Sha512),
    }
}

/// Called once, not on a core's thread but where the answer is `Busy`.
pub(crate) type Answer = Box<dyn FnOnce(AuthVerdict, Option<Box<Conversation>>) + Send>;

/// A log-in to verify, and where the verdict goes.
pub(crate) struct Job {
    /// Who is at the other end.
    pub(crate) peer: SocketAddr,
    /// What the peer gave.
    pub(crate) attempt: Attempt,
    /// What its first message left behind.
    pub(crate) conversation: Option<Box<Conversation>>,
    /// Where the verdict goes.
    pub(crate) answer: Answer,
}

/// The verifier threads. They end when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Authenticator {
    jobs: Line<(Instant, Job)>,
    pace: Pace,
    doors: Doors,
}

/// What may be offered.
#[derive(Clone, Copy, Debug)]
struct Doors {
    /// Nobody has to log in.
    open: bool,
    with_password: Mechanisms,
    plain_in_clear: bool,
}

impl Doors {
    fn new(config: &Config) -> Self {
        let users = &config.users;
        let hashes = || users.iter().map(|user| &user.password_hash).filter(|all| !all.is_empty());
        let any = hashes().next().is_some();
        let all = |hash| any && hashes().all(|some| some.scram(hash).is_some());
        let with_password = Mechanisms::NONE
            .with(Mechanism::ScramSha512, all(Hash::Sha512))
            .with(Mechanism::ScramSha256, all(Hash::Sha256))
            .with(Mechanism::Plain, any);
        let plain_in_clear = config.allow_plain_without_tls;
        Self { open: users.is_empty(), with_password, plain_in_clear }
    }

    fn mechanisms(self, secure: bool, local: bool, certificate: bool) -> Mechanisms {
        let plain = secure || local || self.plain_in_clear;
        let offered = self.with_password.iter().filter(|m| *m != Mechanism::Plain || plain);
        let offered = offered.fold(Mechanisms::NONE, |some, one| some.with(one, true));
        offered.with(Mechanism::Anonymous, self.open).with(Mechanism::External, certificate)
    }
}

/// Whether a client off loopback could log in without TLS.
pub(crate) fn is_usable_in_clear(config: &Config) -> bool {
    Doors::new(config).mechanisms(false, false, false) != Mechanisms::NONE
}

impl Authenticator {
    /// Start the threads, for the users of the configuration.
    ///
    /// # Errors
    /// The machine refused a thread, or randomness.
    pub(crate) fn start(config: &Config) -> Result<Self, Failure> {
        let (jobs, queue) = line(JOBS_MAX);
        let users = Arc::new(Users::new(config.users.clone()));
        let pace = Pace::start()?;
        for number in 0..VERIFIERS {
            let (users, queue, pace) = (Arc::clone(&users), queue.clone(), pace.clone());
            std::thread::Builder::new()
                .name(format!("auth-{number}"))
                .spawn(move || verify_all(&users, &queue, &pace))
                .map_err(|error| {
                    Failure::new(Cause::ResourceRefused, format!("no thread for log-ins: {error}"))
                })?;
        }
        Ok(Self { jobs, pace, doors: Doors::new(config) })
    }

    /// How a client may log in that came this way; none where it cannot.
    pub(crate) fn log_in(
        &self,
        peer: SocketAddr,
        secure: bool,
        certificate_user: Option<String>,
    ) -> Option<LogIn> {
        let local = peer.ip().to_canonical().is_loopback();
        let mechanisms = self.doors.mechanisms(secure, local, certificate_user.is_some());
        let sasl = Sasl::Server { mechanisms, bare: self.doors.open };
        let login = LogIn { sasl: Some(sasl), certificate_user, is_secure: secure };
        (mechanisms != Mechanisms::NONE).then_some(login)
    }

    /// Have a log-in verified. The verdict comes later, or `Busy` at once.
    pub(crate) fn verify(&self, job: Job) {
        let (now, peer) = (clock(), job.peer);
        if self.pace.is_pressed(peer) {
            return self.pace.turn_away(peer, job.answer);
        }
        if let Some((_, job)) = self.jobs.push(address(peer), (now, job)) {
            self.pace.turn_away(job.peer, job.answer);
        }
    }

    /// Log-ins that were not verified, because too many waited: in all, or of their address.
    pub(crate) fn turned_away_total(&self) -> u64 {
        self.pace.turned_away_total()
    }
}

fn verify_all(users: &Users, queue: &Taken<(Instant, Job)>, pace: &Pace) {
    machine::give_way("log-ins");
    while let Some((since, job)) = queue.next() {
        let Job { peer, attempt, conversation, answer } = job;
        if pace.is_pressed(peer) {
            pace.turn_away(peer, answer);
            continue;
        }
        let (user, verdict, conversation) = match attempt {
            Attempt::Plain(plain) => {
                let verdict = users.verdict(&plain.user, plain.password.reveal());
                // Nobody acts as somebody else.
                let is_own = plain.authzid.is_empty() || plain.authzid == plain.user;
                (plain.user, if is_own { verdict } else { AuthVerdict::Refused }, None)
            }
            Attempt::Foreign(user) => (user, AuthVerdict::Refused, None),
            Attempt::Scram(scram) => users.converse(&scram, conversation),
        };
        if verdict == AuthVerdict::Refused {
            pace.refuse(Refusal { since, peer, user: &user }, answer);
        } else {
            answer(verdict, conversation);
        }
    }
}

/// The users by name.
struct Users {
    sorted: Vec<User>,
    /// What the password of an unknown user is verified against.
    decoy: Option<PasswordHash>,
    /// Makes the salts of users that are not there.
    secret: Vec<u8>,
}

impl Users {
    fn new(mut users: Vec<User>) -> Self {
        users.sort_by(|a, b| a.name.cmp(&b.name));
        let hashes = users.iter().filter_map(|user| user.password_hash.plain());
        let decoy = hashes.max_by_key(|hash| hash.cost()).cloned();
        let secret = scram::secret_of(users.iter().flat_map(|user| user.password_hash.scrams()));
        Self { sorted: users, decoy, secret }
    }

    fn named(&self, name: &str) -> Option<&User> {
        let found = self.sorted.binary_search_by(|user| user.name.as_str().cmp(name));
        found.ok().map(|at| &self.sorted[at])
    }

    fn verdict(&self, name: &str, password: &[u8]) -> AuthVerdict {
        let matches = match self.named(name).and_then(|user| user.password_hash.plain()) {
            Some(hash) => hash.matches(password),
            None => {
                let spent = self.decoy.as_ref().map(|decoy| decoy.matches(password));
                std::hint::black_box(spent);
                false
            }
        };
        if matches {
            AuthVerdict::Accepted { user: name.to_owned(), last_word: Vec::new() }
        } else {
            AuthVerdict::Refused
        }
    }

    /// A message of SCRAM: who it is about, what comes of it, and what to keep until the next.
    fn converse(
        &self,
        scram: &SaslScram,
        before: Option<Box<Conversation>>,
    ) -> (String, AuthVerdict, Option<Box<Conversation>>) {
        let message = scram.message.reveal();
        if let Some(conversation) = before.filter(|_| !scram.first) {
            let user = conversation.user.clone();
            let verdict = match conversation.finish(message) {
                Some(last_word) => AuthVerdict::Accepted { user: user.clone(), last_word },
                None => AuthVerdict::Refused,
            };
            return (user, verdict, None);
        }
        let begun = First::read(scram.mechanism, message).and_then(|first| {
            let mut nonce = [0; NONCE_BYTES];
            getrandom::fill(&mut nonce).ok()?;
            let of_user = self.named(&first.user).and_then(|u| u.password_hash.scram(first.hash));
            let all = self.sorted.iter().filter_map(|user| user.password_hash.scram(first.hash));
            let decoy = Verifier::decoy(&all.collect::<Vec<_>>(), &first.user, &self.secret)?;
            let known = of_user.is_some();
            let verifier = of_user.cloned().unwrap_or(decoy);
            Some(Conversation::begin(&first, verifier, known, &base64::encode(&nonce)))
        });
        match begun {
            Some((conversation, challenge)) => {
                let user = conversation.user.clone();
                (user, AuthVerdict::Challenge(challenge), Some(Box::new(conversation)))
            }
            None => (String::new(), AuthVerdict::Refused, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use amqp::connection::{Password, SaslPlain};
    use crossbeam::channel::{Sender, bounded, unbounded};

    use super::*;

    fn user(name: &str, password: &str) -> User {
        let hash = hash(password, HashFor::Argon2id).expect("hashed");
        let password_hash = PasswordHashes(vec![hash.parse().expect("its own format")]);
        User { name: name.to_owned(), password_hash, ..User::default() }
    }

    fn started(users: Vec<User>) -> Authenticator {
        let mut config = Config::default();
        config.users = users;
        Authenticator::start(&config).expect("started")
    }

    fn job(user: &str, password: &str, verdict: Sender<AuthVerdict>) -> Job {
        let (user, password) = (user.to_owned(), Password::new(password.as_bytes()));
        Job {
            peer: "127.0.0.1:1".parse().expect("an address"),
            attempt: Attempt::Plain(Box::new(SaslPlain { authzid: String::new(), user, password })),
            conversation: None,
            answer: Box::new(move |said, _| verdict.send(said).expect("somebody waits")),
        }
    }

    fn ask(auth: &Authenticator, user: &str, password: &str) -> AuthVerdict {
        let (verdict, answer) = bounded(1);
        auth.verify(job(user, password, verdict));
        answer.recv().expect("an answer")
    }

    #[test]
    fn only_the_users_own_password_is_accepted() {
        let auth = started(vec![user("b", "two"), user("a", "one")]);
        let accepted = |name: &str| {
            let (user, last_word) = (name.to_owned(), Vec::new());
            AuthVerdict::Accepted { user, last_word }
        };
        assert_eq!(ask(&auth, "a", "one"), accepted("a"));
        assert_eq!(ask(&auth, "b", "two"), accepted("b"));
        assert_eq!(ask(&auth, "a", "two"), AuthVerdict::Refused);
        assert_eq!(ask(&auth, "nobody", "one"), AuthVerdict::Refused);
        assert_eq!(ask(&auth, "", ""), AuthVerdict::Refused);
    }

    #[test]
    fn who_wants_to_be_another_user_is_refused_late_like_any_other() {
        let auth = started(vec![user("a", "one"), user("b", "two")]);
        let plain = |authzid: &str| {
            let (user, password) = ("a".to_owned(), Password::new(b"one".as_slice()));
            Attempt::Plain(Box::new(SaslPlain { authzid: authzid.to_owned(), user, password }))
        };
        let said = |attempt| {
            let (verdict, answer) = bounded(1);
            let since = clock();
            auth.verify(Job { attempt, ..job("", "", verdict) });
            (answer.recv().expect("an answer"), since.elapsed())
        };
        assert!(matches!(said(plain("a")).0, AuthVerdict::Accepted { .. }));
        for (attempt, at_least) in [(plain("b"), 100), (Attempt::Foreign("b".to_owned()), 200)] {
            let (verdict, after) = said(attempt);
            assert_eq!(verdict, AuthVerdict::Refused);
            assert!(after.as_millis() >= at_least, "{after:?}");
        }
    }

    #[test]
    fn verifying_goes_behind_the_cores() {
        let auth = started(vec![user("a", "one")]);
        // Whichever thread answers has given way before.
        ask(&auth, "a", "one");
        let nice = |task: std::fs::DirEntry| {
            let read = |name| std::fs::read_to_string(task.path().join(name)).ok();
            read("comm").filter(|name| name.starts_with("auth-") && !name.contains("late"))?;
            let stat = read("stat")?;
            let (_, after_name) = stat.rsplit_once(") ")?;
            // Field 19; the state, behind the name, is field 3.
            after_name.split(' ').nth(16)?.parse::<i32>().ok()
        };
        let tasks = std::fs::read_dir("/proc/self/task").expect("on Linux");
        let nicest = tasks.filter_map(|task| nice(task.ok()?)).max();
        assert!(nicest >= Some(machine::NICE), "{nicest:?}");
    }

    #[test]
    fn a_full_queue_is_busy_and_waits_for_nobody() {
        let (jobs, queue) = line(1);
        let pace = Pace::start().expect("started");
        let auth = Authenticator { jobs, pace, doors: Doors::new(&Config::default()) };
        let (verdict, answer) = bounded(1);
        auth.verify(job("", "", verdict.clone()));
        assert!(answer.is_empty());
        auth.verify(job("", "", verdict));
        assert_eq!(answer.try_recv(), Ok(AuthVerdict::Busy));
        assert_eq!(auth.turned_away_total(), 1);
        drop(queue);
    }

    /// They fill the queue, and each has fewer refusals waiting than would turn it away.
    #[test]
    fn sixteen_addresses_that_guess_keep_no_right_password_out() {
        let auth = started(vec![user("a", "one")]);
        let (guessed, guesses) = unbounded();
        for guess in 0..2 * JOBS_MAX {
            let from = [127, 0, 0, 66 + (guess % 16) as u8];
            let job = job("a", "wrong", guessed.clone());
            auth.verify(Job { peer: (from, 5).into(), ..job });
        }
        assert!(auth.turned_away_total() > 0, "the queue was never full");
        assert!(matches!(ask(&auth, "a", "one"), AuthVerdict::Accepted { .. }));
        drop(guesses.try_recv());
        // Whoever answers later still has somebody to tell.
        drop(auth);
        drop(guessed);
        assert!(
            guesses.iter().all(|said| matches!(said, AuthVerdict::Refused | AuthVerdict::Busy))
        );
    }

    #[test]
    fn what_is_offered_follows_the_way_and_the_hashes() {
        let names = |doors: Doors, secure, local, certificate| -> Vec<&str> {
            doors.mechanisms(secure, local, certificate).iter().map(Mechanism::name).collect()
        };
        let doors = |users| {
            let mut config = Config::default();
            config.users = users;
            Doors::new(&config)
        };
        assert_eq!(names(doors(Vec::new()), false, false, false), ["ANONYMOUS"]);
        let plain = doors(vec![user("a", "x")]);
        assert!(names(plain, false, false, false).is_empty(), "no password in the clear");
        assert_eq!(names(plain, true, false, false), ["PLAIN"]);
        assert_eq!(names(plain, false, true, false), ["PLAIN"]);
        let allowed = Doors { plain_in_clear: true, ..plain };
        assert_eq!(names(allowed, false, false, false), ["PLAIN"]);
        let scram = hash("x", HashFor::ScramSha256).expect("hashed").parse().expect("read");
        let password_hash = PasswordHashes(vec![scram]);
        let b = User { name: "b".to_owned(), password_hash, ..User::default() };
        assert_eq!(names(doors(vec![b.clone()]), false, false, false), ["SCRAM-SHA-256"]);
        let mixed = doors(vec![user("a", "x"), b]);
        assert_eq!(names(mixed, true, false, true), ["EXTERNAL", "PLAIN"]);
    }

    #[test]
    fn hashes_that_are_no_argon2_or_too_dear_are_refused() {
        let good = hash("x", HashFor::Argon2id).expect("hashed");
        for wrong in [
            "secret".to_owned(),
            String::new(),
            "$pbkdf2-sha256$i=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo".to_owned(),
            good.replace("m=19456", "m=4000000"),
            good.replace("t=2", "t=1000"),
            good[..good.rfind('$').expect("parts")].to_owned(),
        ] {
            assert!(wrong.parse::<PasswordHash>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_hash_is_never_shown() {
        let user = user("a", "one");
        assert!(!format!("{user:?}").contains("argon2"));
    }
}
