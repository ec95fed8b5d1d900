//! Who may log in: argon2 hashes from the configuration, verified off the shards' threads.
//!
//! ```text
//!   shard ── Job ──▶ [ bounded queue ] ──▶ verifier threads ── verdict ──▶ the job's answer
//!                    full: Busy, at once
//! ```
//! Verifying costs tens of milliseconds and 19 MiB on purpose, so a shard never does it, and only
//! [`VERIFIERS`] threads do: a flood of log-ins slows log-ins and nothing else.
//!
//! Invariants: an unknown user costs as much as a known one (the password is then verified against
//! the costliest hash there is, and refused whatever comes out); a password is wiped after use and
//! is never logged; costs in the configuration are bounded, so a hash cannot eat the machine.
//!
//! Failure: a full queue answers [`AuthVerdict::Busy`]; a hash that cannot be read is an error of
//! the configuration, found before the start.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use argon2::password_hash::phc;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Argon2, Params};
use broker::event::{AuthVerdict, Secret};
use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use crate::config::User;
use crate::fatal::{Cause, Failure};

/// Threads that verify.
const VERIFIERS: usize = 2;

/// Log-ins that may wait: about a second's worth.
const JOBS_MAX: usize = 64;

/// The most memory that a configured hash may cost, in KiB.
const HASH_KIB_MAX: u32 = 256 * 1024;

/// The most passes that a configured hash may cost.
const HASH_PASSES_MAX: u32 = 16;

/// A hash as `laelaps user hash` prints it: an argon2 PHC string within the bounds of cost.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PasswordHash {
    phc: phc::PasswordHash,
    cost: u64,
}

impl FromStr for PasswordHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
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
        Ok(Self { phc, cost })
    }
}

impl PasswordHash {
    fn matches(&self, password: &[u8]) -> bool {
        Argon2::default().verify_password(password, &self.phc).is_ok()
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

impl<'de> serde::Deserialize<'de> for PasswordHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Hash a password for the configuration.
///
/// # Errors
/// No randomness for the salt.
pub(crate) fn hash(password: &str) -> Result<String, Failure> {
    Argon2::default()
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|error| Failure::new(Cause::ResourceRefused, format!("cannot hash: {error}")))
}

/// A log-in to verify, and where the verdict goes.
pub(crate) struct Job {
    /// The name that the peer gave.
    pub(crate) user: String,
    /// The password that the peer gave.
    pub(crate) password: Secret,
    /// Called once, on a verifier's thread.
    pub(crate) answer: Box<dyn FnOnce(AuthVerdict) + Send>,
}

/// The verifier threads. They end when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Authenticator {
    jobs: Sender<Job>,
}

impl Authenticator {
    /// Start the threads, for these users. Without users every log-in is refused.
    ///
    /// # Errors
    /// The machine refused a thread.
    pub(crate) fn start(users: Vec<User>) -> Result<Self, Failure> {
        let (jobs, queue) = bounded(JOBS_MAX);
        let users = Arc::new(Users::new(users));
        for number in 0..VERIFIERS {
            let (users, queue) = (Arc::clone(&users), queue.clone());
            std::thread::Builder::new()
                .name(format!("auth-{number}"))
                .spawn(move || verify_all(&users, &queue))
                .map_err(|error| {
                    Failure::new(Cause::ResourceRefused, format!("no thread for log-ins: {error}"))
                })?;
        }
        Ok(Self { jobs })
    }

    /// Have a log-in verified. The verdict comes later, or `Busy` at once.
    pub(crate) fn verify(&self, job: Job) {
        match self.jobs.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                (job.answer)(AuthVerdict::Busy);
            }
        }
    }
}

fn verify_all(users: &Users, queue: &Receiver<Job>) {
    for job in queue {
        let verdict = users.verdict(&job.user, job.password.0.as_bytes());
        wipe(job.password);
        (job.answer)(verdict);
    }
}

/// Overwrite a password before its memory goes back.
fn wipe(password: Secret) {
    let mut bytes = password.0.into_bytes();
    bytes.fill(0);
    std::hint::black_box(&bytes);
}

/// The users by name.
struct Users {
    sorted: Vec<User>,
    /// What the password of an unknown user is verified against.
    decoy: Option<PasswordHash>,
}

impl Users {
    fn new(mut users: Vec<User>) -> Self {
        users.sort_by(|a, b| a.name.cmp(&b.name));
        let costliest = users.iter().max_by_key(|user| user.password_hash.cost);
        let decoy = costliest.map(|user| user.password_hash.clone());
        Self { sorted: users, decoy }
    }

    fn verdict(&self, name: &str, password: &[u8]) -> AuthVerdict {
        let found = self.sorted.binary_search_by(|user| user.name.as_str().cmp(name));
        let matches = match found {
            Ok(at) => self.sorted[at].password_hash.matches(password),
            Err(_) => {
                let spent = self.decoy.as_ref().map(|decoy| decoy.matches(password));
                std::hint::black_box(spent);
                false
            }
        };
        if matches { AuthVerdict::Accepted } else { AuthVerdict::Refused }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, password: &str) -> User {
        let password_hash = hash(password).expect("hashed").parse().expect("its own format");
        User { name: name.to_owned(), password_hash }
    }

    fn ask(auth: &Authenticator, user: &str, password: &str) -> AuthVerdict {
        let (verdict, answer) = bounded(1);
        auth.verify(Job {
            user: user.to_owned(),
            password: Secret(password.to_owned()),
            answer: Box::new(move |said| verdict.send(said).expect("somebody waits")),
        });
        answer.recv().expect("an answer")
    }

    #[test]
    fn only_the_users_own_password_is_accepted() {
        let auth = Authenticator::start(vec![user("b", "two"), user("a", "one")]).expect("started");
        assert_eq!(ask(&auth, "a", "one"), AuthVerdict::Accepted);
        assert_eq!(ask(&auth, "b", "two"), AuthVerdict::Accepted);
        assert_eq!(ask(&auth, "a", "two"), AuthVerdict::Refused);
        assert_eq!(ask(&auth, "a", ""), AuthVerdict::Refused);
        assert_eq!(ask(&auth, "nobody", "one"), AuthVerdict::Refused);
        assert_eq!(ask(&auth, "", ""), AuthVerdict::Refused);
    }

    #[test]
    fn a_full_queue_is_busy_and_waits_for_nobody() {
        let (jobs, queue) = bounded(1);
        let auth = Authenticator { jobs };
        let (verdict, answer) = bounded(1);
        let job = |verdict: Sender<AuthVerdict>| Job {
            user: String::new(),
            password: Secret(String::new()),
            answer: Box::new(move |said| verdict.send(said).expect("room")),
        };
        auth.verify(job(verdict.clone()));
        assert!(answer.is_empty());
        auth.verify(job(verdict));
        assert_eq!(answer.try_recv(), Ok(AuthVerdict::Busy));
        drop(queue);
    }

    #[test]
    fn hashes_that_are_no_argon2_or_too_dear_are_refused() {
        let good = hash("x").expect("hashed");
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
