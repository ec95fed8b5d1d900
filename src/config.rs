//! Every knob of the broker, each declared once: key, type, default, bounds, when a change takes
//! effect, what it is and why its default is right.
//!
//! ```text
//!   knobs! ──┬─▶ Layer      what a file or the flags say       TOML keys and flags have one name
//!            ├─▶ Config     defaults ◀ file ◀ flags            the later wins
//!            ├─▶ KNOBS      docs/operating/configuration.md, `config schema`
//!            └─▶ bounds     checked wherever the value came from
//! ```
//! A knob lives nowhere else: the rest of the process reads [`Config`], and no default is repeated.
//!
//! Invariants: a [`Config`] is within its bounds and safe to start with: the levels that need a
//! replica are refused without one, and so is an address off loopback without authentication.
//!
//! Failure: each message names the key, the value and the bounds; TOML errors name line and column.

use std::net::SocketAddr;
use std::path::Path;

use crate::fatal::{Cause, Failure};

mod address;
mod ha;
mod page;
mod user;
mod value;

pub(crate) use ha::{Pair, node_name};
pub(crate) use page::schema;
pub(crate) use user::{CertificateName, Role, User, access};
pub(crate) use value::{
    Bytes, COUNT_MAX, Count, Directory, Durability, EngineChoice, LogFormat, OptionalFile,
    OptionalListen, Patience, Share, Span,
};

/// When a changed value is heeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applies {
    /// At the next start.
    Start,
    /// Only when a directory is formatted; contradicting an old one stops the start.
    Format,
}

/// What the documentation says of a knob.
pub(crate) struct Knob {
    key: &'static str,
    what: &'static str,
    default: &'static str,
    bounds: String,
    #[cfg_attr(not(test), expect(dead_code, reason = "only the reference page says it"))]
    applies: Applies,
    why: &'static str,
}

/// Declares the knobs. See the head of this file for what comes out.
macro_rules! knobs {
    ($(
        $key:literal $field:ident: $type:ty = $default:literal
            $(in $min:literal ..= $max:literal)? $(one of ($words:expr))? $(like $like:literal)?;
            $applies:ident; arg($($arg:tt)*);
            $what:literal; $why:literal;
    )*) => {
        /// What one source of configuration says; what it leaves open is `None`.
        #[derive(Clone, Debug, Default, clap::Args, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct Layer {
            $(
                #[arg(long = $key, help = concat!($what, " [default: ", $default, "]"), $($arg)*)]
                #[serde(rename = $key, default, deserialize_with = "value::scalar")]
                $field: Option<$type>,
            )*
            #[arg(skip)]
            #[serde(default)]
            users: Vec<User>,
            #[arg(skip)]
            #[serde(default)]
            address: Vec<address::AddressRule>,
            #[arg(skip)]
            #[serde(default)]
            roles: Vec<Role>,
            #[arg(skip)]
            #[serde(default)]
            ha: Option<ha::Table>,
        }

        /// The configuration: complete and within its bounds.
        #[derive(Clone, Debug)]
        pub(crate) struct Config {
            $(#[doc = $what] pub(crate) $field: $type,)*
            /// Who may log in; nobody in here means ANONYMOUS.
            pub(crate) users: Vec<User>,
            /// What holds for which address, as the file says it.
            address: Vec<address::AddressRule>,
            /// What users may do; without any, everything.
            pub(crate) roles: Vec<Role>,
            /// The pair of which it is a member, as the file says it.
            ha: Option<ha::Table>,
            /// The keys that a file or a flag gave.
            given: Vec<&'static str>,
        }

        impl Default for Config {
            fn default() -> Self {
                Self {
                    $($field: $default.parse().expect("a default is a value of its type"),)*
                    users: Vec::new(),
                    address: Vec::new(),
                    roles: Vec::new(),
                    ha: None,
                    given: Vec::new(),
                }
            }
        }

        impl Config {
            /// Let a layer speak over what is there.
            fn lay(&mut self, layer: Layer) {
                $(if let Some(value) = layer.$field {
                    self.$field = value;
                    self.given.push($key);
                })*
                if !layer.address.is_empty() {
                    self.address = layer.address;
                }
                if !layer.users.is_empty() {
                    self.users = layer.users;
                }
                if !layer.roles.is_empty() {
                    self.roles = layer.roles;
                }
                self.ha = layer.ha.or(self.ha.take());
            }

            fn check_bounds(&self) -> Result<(), String> {
                $($(
                    let least = $min.parse().expect("a bound is a value of its type");
                    let most = $max.parse().expect("a bound is a value of its type");
                    if !(least..=most).contains(&self.$field) {
                        return Err(format!(
                            "{} is {}, but must lie between {} and {}",
                            $key, self.$field, $min, $max
                        ));
                    }
                )?)*
                Ok(())
            }
        }

        /// Every knob, for the reference page and the schema.
        pub(crate) fn knobs() -> Vec<Knob> {
            vec![$(Knob {
                key: $key,
                what: $what,
                default: $default,
                bounds: [
                    $(format!("{} to {}", $min, $max),)?
                    $($words.join(", "),)?
                    $($like.to_owned(),)?
                ].concat(),
                applies: Applies::$applies,
                why: $why,
            }),*]
        }
    };
}

knobs! {
    "data" data: Directory = "./laelaps-data" like "a path";
        Start; arg(value_name = "DIR");
        "The directory that holds the journal; it is created";
        "A first try needs no file and no root.";
    "listen" listen: SocketAddr = "127.0.0.1:5672" like "an IP address and port";
        Start; arg(value_name = "ADDR:PORT");
        "Where AMQP clients connect";
        "Loopback, since nobody has to log in yet.";
    "tls-listen" tls_listen: OptionalListen = "off" like "off, or an IP address and port";
        Start; arg(value_name = "ADDR:PORT");
        "Where AMQP clients connect by TLS (amqps)";
        "TLS needs a certificate, which only you have; the usual port is 5671.";
    "tls-cert" tls_cert: OptionalFile = "none" like "none, or a path";
        Start; arg(value_name = "FILE");
        "PEM file of the certificate for tls-listen, with its chain; a new one is used at once";
        "There is none that every client would trust.";
    "tls-key" tls_key: OptionalFile = "none" like "none, or a path";
        Start; arg(value_name = "FILE");
        "PEM file of the key of tls-cert; a new one is used at once";
        "As for the certificate.";
    "tls-client-ca" tls_client_ca: OptionalFile = "none" like "none, or a path";
        Start; arg(value_name = "FILE");
        "PEM file of the CAs whose client certificates are trusted; a new one is used at once";
        "Without it no client is asked for a certificate.";
    "tls-require-client-cert" tls_require_client_cert: bool = "false" one of (["true", "false"]);
        Start; arg(value_name = "BOOL", num_args = 0..=1, require_equals = true,
                   default_missing_value = "true");
        "Refuse TLS clients without a certificate of tls-client-ca";
        "Clients with passwords and clients with certificates can share a port.";
    "allow-plain-without-tls" allow_plain_without_tls: bool = "false" one of (["true", "false"]);
        Start; arg(value_name = "BOOL", num_args = 0..=1, require_equals = true,
                   default_missing_value = "true");
        "Let passwords come in the clear from off loopback: SASL PLAIN without TLS, and to admin";
        "Whoever sees the network would see the passwords.";
    "admin" admin: SocketAddr = "127.0.0.1:8161" like "an IP address and port";
        Start; arg(value_name = "ADDR:PORT");
        "Where health, metrics and management answer by HTTP";
        "Loopback, where operators need not log in; off it they are users who may `manage`.";
    "shards" shards: Count = "auto" like "auto, or 1 to 256";
        Format; arg(value_name = "N");
        "Shares of the state, each with a journal of its own";
        "One for each thread at the time of the format; more only to move to a larger machine.";
    "threads" threads: Count = "auto" like "auto, or 1 to 256";
        Start; arg(value_name = "N");
        "Core threads, which share the shards; never more than there are shards";
        "What affinity and the container's CPU quota leave; see `laelaps preflight`.";
    "segment-size" segment_size: Bytes = "64 MiB" in "4 MiB" ..= "256 MiB";
        Format; arg(value_name = "BYTES");
        "Size of a journal segment, a multiple of 4 KiB";
        "Rarely a new file, yet small beside a disk; choose 4 to 16 MiB where the disk is 8 GiB.";
    "disk-max" disk_max: Share = "80%" like "1% to 90%, or bytes";
        Start; arg(value_name = "SHARE");
        "Bound of all journals: bytes, or a part of what is free with what they have already";
        "A volume that is quite full is slow, and something else always needs a little.";
    "memory-max" memory_max: Share = "25%" like "1% to 90%, or bytes, at least 1 MiB";
        Start; arg(value_name = "SHARE");
        "Bound of messages and journal buffers in memory: bytes, or a part of machine or container";
        "Connections and the kernel's sockets need room beside the messages.";
    "durability" durability: Durability = "sync" one of (Durability::WORDS);
        Start; arg(value_name = "LEVEL");
        "When a message counts as accepted: async, sync, replicated, replicated-sync";
        "What is accepted is on the disk; nothing weaker is a promise.";
    "writes-in-flight-max" writes_in_flight_max: u8 = "4" in "1" ..= "8";
        Start; arg(value_name = "N");
        "Journal writes that a shard may have under way";
        "Four gave 2.5 times the throughput of one on the disks measured; more gave little.";
    "max-message-size" max_message_size: Bytes = "256 MiB" in "64 KiB" ..= "2047 MiB";
        Start; arg(value_name = "BYTES");
        "The largest message that is taken";
        "What is long goes into the log as it comes: its length takes disk, not memory.";
    "idle-timeout" idle_timeout: Span = "60s" in "1s" ..= "10m";
        Start; arg(value_name = "TIME");
        "A connection that is silent for so long is closed; the peer is told half of it";
        "Long enough for a client's pause, short enough to free what a dead one holds.";
    "engine" engine: EngineChoice = "auto" one of (EngineChoice::WORDS);
        Start; arg(value_name = "ENGINE");
        "What drives sockets and files: auto, uring, epoll";
        "io_uring where the machine allows it, else epoll; a start says which and why.";
    "log" log: LogFormat = "text" one of (LogFormat::WORDS);
        Start; arg(value_name = "FORMAT");
        "Form of the log on standard error: text, json";
        "People read it first.";
    "drain" drain: Span = "5s" in "0" ..= "10m";
        Start; arg(value_name = "TIME");
        "How long a stop may take to answer what was sent";
        "Well below the ten to thirty seconds after which supervisors kill.";
    "lock-wait" lock_wait: Patience = "forever" like "forever, or a time; 0 fails at once";
        Start; arg(value_name = "TIME");
        "How long to wait for a directory that another process holds";
        "In a rolling update the new process starts before the old one has stopped.";
    "allow-volatile" allow_volatile: bool = "false" one of (["true", "false"]);
        Start; arg(value_name = "BOOL", num_args = 0..=1, require_equals = true,
                   default_missing_value = "true");
        "Accept a directory that forgets at power-off (tmpfs)";
        "`accepted` would be a lie there.";
    "insecure" insecure: bool = "false" one of (["true", "false"]);
        Start; arg(value_name = "BOOL", num_args = 0..=1, require_equals = true,
                   default_missing_value = "true");
        "Serve addresses off loopback without authentication";
        "An open broker is found within hours. Where there are users it changes nothing.";
}

impl Config {
    /// Defaults, under the file if there is one, under the flags; checked as a whole.
    pub(crate) fn load(file: Option<&Path>, flags: Layer) -> Result<Self, Failure> {
        let mut config = Self::default();
        if let Some(path) = file {
            config.lay(read(path)?);
        }
        config.lay(flags);
        config.complete();
        config.check()?;
        Ok(config)
    }

    /// A pair's members keep what is accepted on both disks, unless less is asked for.
    fn complete(&mut self) {
        if self.ha.is_some() && !self.is_given("durability") {
            self.durability = Durability::ReplicatedSync;
        }
    }

    /// The pair of which this broker is a member, if it is one of any.
    ///
    /// # Errors
    /// The key, and what is wrong with it.
    pub(crate) fn pair(&self) -> Result<Option<Pair>, Failure> {
        self.ha.as_ref().map(ha::Table::check).transpose().map_err(|fault| match fault {
            ha::Fault::Invalid(why) => Failure::new(Cause::ConfigInvalid, why),
            ha::Fault::Exposed(why) => Failure::new(Cause::Exposed, why),
        })
    }

    /// What holds for which address.
    ///
    /// # Errors
    /// The pattern, and what is wrong with what is said of it.
    pub(crate) fn address_settings(&self) -> Result<broker::settings::Settings, Failure> {
        address::settings(&self.address).map_err(|what| Failure::new(Cause::ConfigInvalid, what))
    }

    /// Whether a file or a flag gave this key, so that a contradiction is worth an error.
    pub(crate) fn is_given(&self, key: &str) -> bool {
        self.given.contains(&key)
    }

    fn check(&self) -> Result<(), Failure> {
        let invalid = |message| Failure::new(Cause::ConfigInvalid, message);
        self.check_bounds().map_err(invalid)?;
        if !self.segment_size.0.is_multiple_of(BLOCK_BYTES) {
            let size = self.segment_size;
            return Err(invalid(format!(
                "segment-size is {size}, but must be a multiple of 4 KiB"
            )));
        }
        if let Share::Bytes(bytes) = self.memory_max
            && bytes < MEMORY_LEAST
        {
            return Err(invalid(format!(
                "memory-max is {bytes}, but must be at least {MEMORY_LEAST}"
            )));
        }
        self.check_users().map_err(invalid)?;
        self.address_settings()?;
        self.check_tls().map_err(invalid)?;
        let is_alone = self.pair()?.is_none();
        let by_address = self.address.iter().filter_map(address::AddressRule::durability);
        let by_address = by_address.map(|(of, level)| (format!("address '{of}': "), level));
        for (whose, durability) in by_address.chain([(String::new(), self.durability)]) {
            match durability {
                Durability::Async | Durability::Sync => {}
                Durability::Replicated | Durability::ReplicatedSync if !is_alone => {}
                Durability::Replicated | Durability::ReplicatedSync => {
                    return Err(Failure::new(
                        Cause::ReplicationMissing,
                        format!(
                            "{whose}durability is {durability}, but no replica is configured \
                             (there is no [ha])"
                        ),
                    ));
                }
            }
        }
        self.check_exposure()
    }

    fn check_users(&self) -> Result<(), String> {
        user::check(&self.users, &self.roles)?;
        let certificates = self.users.iter().any(|user| !user.certificates.is_empty());
        if certificates && self.tls_client_ca.0.is_none() {
            return Err("users: certificates need tls-client-ca".to_owned());
        }
        Ok(())
    }

    /// Files without a listener, or a listener without its files, are a mistake.
    fn check_tls(&self) -> Result<(), String> {
        if self.tls_listen.0.is_some() && (self.tls_cert.0.is_none() || self.tls_key.0.is_none()) {
            return Err(format!(
                "tls-listen is {}, but needs both tls-cert and tls-key",
                self.tls_listen
            ));
        }
        let files = [
            ("tls-cert", &self.tls_cert),
            ("tls-key", &self.tls_key),
            ("tls-client-ca", &self.tls_client_ca),
        ];
        let given = files.into_iter().find(|(_, file)| file.0.is_some());
        if let (None, Some((key, _))) = (self.tls_listen.0, given) {
            return Err(format!("{key} is given, but nobody is served with it: give tls-listen"));
        }
        if self.tls_require_client_cert && self.tls_client_ca.0.is_none() {
            return Err("tls-require-client-cert needs tls-client-ca".to_owned());
        }
        Ok(())
    }

    /// Whoever reaches an open port owns the broker, so an open port must be meant. `insecure` is
    /// for a broker without users: those that there are must be able to log in, and safely.
    fn check_exposure(&self) -> Result<(), Failure> {
        if self.insecure && self.users.is_empty() {
            return Ok(());
        }
        let exposed = |message| Err(Failure::new(Cause::Exposed, message));
        if !self.listen.ip().is_loopback()
            && !self.users.is_empty()
            && !crate::auth::is_usable_in_clear(self)
        {
            return exposed(format!(
                "listen is {}, off loopback, where nobody could log in: passwords are not sent in \
                 the clear; use tls-listen, give every user a SCRAM hash, or set \
                 allow-plain-without-tls",
                self.listen
            ));
        }
        let ports = [("listen", Some(self.listen)), ("tls-listen", self.tls_listen.0)];
        for (key, addr) in ports {
            if let Some(addr) = addr.filter(|addr| !addr.ip().is_loopback())
                && self.users.is_empty()
            {
                return exposed(format!(
                    "{key} is {addr}, off loopback, and nobody has to log in: configure [[users]]"
                ));
            }
        }
        if self.admin.ip().is_loopback() {
            return Ok(());
        }
        let passwords = self.users.iter().any(|user| !user.password_hash.is_empty());
        if passwords && self.allow_plain_without_tls {
            return Ok(());
        }
        let what = if passwords {
            "where passwords travel in the clear: set allow-plain-without-tls if the way there is \
             safe"
        } else {
            "and operators log in with passwords: configure [[users]]"
        };
        exposed(format!("admin is {}, off loopback, {what}", self.admin))
    }
}

/// The journal's block; a segment is made of whole ones.
const BLOCK_BYTES: u64 = 4096;
/// The least `memory-max`, in bytes; a start asks for more where there are many shards.
const MEMORY_LEAST: Bytes = Bytes(1 << 20);

/// Read a file into a layer.
fn read(path: &Path) -> Result<Layer, Failure> {
    let invalid = |why: String| {
        Failure::new(Cause::ConfigInvalid, format!("configuration {}: {why}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
    toml::from_str(&text).map_err(|error| invalid(toml_error(&text, &error)))
}

/// Where and why, without the line itself: it may hold a password in the place of its hash, and
/// what is said here goes to the log.
fn toml_error(text: &str, error: &toml::de::Error) -> String {
    let why = error.message();
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
        return why.to_owned();
    };
    let line = before.split('\n').count();
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::HashFor;

    fn parse(text: &str) -> Result<Config, Failure> {
        let layer = toml::from_str(text)
            .map_err(|error| Failure::new(Cause::ConfigInvalid, error.to_string()))?;
        let mut config = Config::default();
        config.lay(layer);
        config.check()?;
        Ok(config)
    }

    fn cause(text: &str) -> Cause {
        parse(text).expect_err(text).cause
    }

    #[test]
    fn the_defaults_are_a_configuration() {
        let config = Config::default();
        config.check().expect("the defaults pass");
        assert_eq!(config.listen.to_string(), "127.0.0.1:5672");
        assert_eq!(config.durability, Durability::Sync);
    }

    #[test]
    fn flags_speak_over_the_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "drain = \"1s\"\nshards = 3\n").expect("written");
        let flags = Layer { drain: Some(Span::secs(2)), ..Layer::default() };
        let config = Config::load(Some(file.path()), flags).expect("fine");
        assert_eq!(config.drain, Span::secs(2));
        assert_eq!(config.shards, Count::Just(3));
        assert!(config.is_given("shards") && !config.is_given("segment-size"));
    }

    #[test]
    fn an_error_says_where_and_repeats_no_secret() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (line, column) in [("password-hash = \"hunter2\"", 17), ("password = \"hunter2\"", 1)] {
            let text = format!("drain = \"1s\"\n[[users]]\nname = \"é\"\n{line}\n");
            std::fs::write(file.path(), text).expect("written");
            let failure = Config::load(Some(file.path()), Layer::default()).expect_err("refused");
            let message = failure.message;
            assert!(message.contains(&format!("line 4, column {column}: ")), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn every_knob_reads_its_own_default_from_toml() {
        for knob in knobs() {
            let text = format!("{} = \"{}\"", knob.key, knob.default);
            parse(&text).unwrap_or_else(|failure| panic!("{text}: {failure}"));
        }
    }

    #[test]
    fn unknown_keys_and_values_out_of_bounds_are_named() {
        for (text, names) in [
            ("dta = \"x\"", "dta"),
            ("segment-size = \"3 MiB\"", "segment-size"),
            ("segment-size = 4194305", "segment-size"),
            ("memory-max = 0", "memory-max"),
            ("writes-in-flight-max = 9", "writes-in-flight-max"),
            ("idle-timeout = \"0\"", "idle-timeout"),
            ("durability = \"synch\"", "replicated-sync"),
            ("[[users]]\nname = \"a\"", "password-hash"),
            ("[[users]]\nname = \"a\"\ncertificates = [\"cn:a\"]", "tls-client-ca"),
            ("[[users]]\nname = \"a\"\ncertificates = [\"a\"]", "cn:"),
            ("tls-cert = \"a.pem\"\ntls-key = \"a.pem\"", "tls-listen"),
            ("tls-client-ca = \"a.pem\"", "tls-listen"),
            ("tls-listen = \"127.0.0.1:5671\"\ntls-cert = \"a.pem\"", "tls-key"),
            ("tls-require-client-cert = true", "tls-client-ca"),
            ("[[roles]]\nname = \"a\"\nsend = [\"a.#\"]", "no users"),
            ("[[roles]]\nname = \"a\"\nsend = [\"a.#.b\"]", "last word"),
            ("[[roles]]\nname = \"a\"\ntake = [\"a\"]", "take"),
        ] {
            let failure = parse(text).expect_err(text);
            assert_eq!(failure.cause, Cause::ConfigInvalid, "{text}");
            assert!(failure.message.contains(names), "{text}: {failure}");
        }
    }

    #[test]
    fn a_level_that_needs_a_replica_is_never_weakened() {
        assert_eq!(cause("durability = \"replicated\""), Cause::ReplicationMissing);
        assert_eq!(cause("durability = \"replicated-sync\""), Cause::ReplicationMissing);
        let address = |level| format!("[[address]]\nmatch = \"a.#\"\ndurability = \"{level}\"\n");
        let failure = parse(&address("replicated")).expect_err("alone");
        assert_eq!(failure.cause, Cause::ReplicationMissing);
        assert!(failure.message.contains("a.#"), "{failure}");
        let pair = format!(
            "{}[ha]\npair = \"p\"\nnode = \"a\"\nreplication = \"127.0.0.1:1\"\n\
             peer = \"127.0.0.1:2\"\n\
             voters = [\"127.0.0.1:3\", \"127.0.0.1:4\", \"127.0.0.1:5\"]\n",
            address("replicated")
        );
        let settings = parse(&pair).and_then(|config| config.address_settings()).expect("a pair");
        assert_eq!(settings.of("a.b").level, Some(journal::Level::Replicated));
        assert_eq!(settings.of("b").level, None, "the broker's");
    }

    #[test]
    fn off_loopback_needs_users_or_the_word() {
        assert_eq!(cause("listen = \"0.0.0.0:5672\""), Cause::Exposed);
        assert_eq!(cause("listen = \"[::]:5672\""), Cause::Exposed);
        assert_eq!(cause("admin = \"0.0.0.0:8161\""), Cause::Exposed);
        parse("listen = \"0.0.0.0:5672\"\ninsecure = true").expect("meant");
        parse("admin = \"0.0.0.0:8161\"\ninsecure = true").expect("meant");
        let hashed = |wanted| crate::auth::hash("secret", wanted).expect("hashed");
        let user = |hash| format!("[[users]]\nname = \"app\"\npassword-hash = \"{hash}\"\n");
        let scram = user(hashed(HashFor::ScramSha256));
        parse(&format!("listen = \"0.0.0.0:5672\"\n{scram}")).expect("users log in");
        let user = user(hashed(HashFor::Argon2id));
        assert_eq!(cause(&format!("listen = \"0.0.0.0:5672\"\n{user}")), Cause::Exposed);
        let open = format!("insecure = true\nlisten = \"0.0.0.0:5672\"\n{user}");
        assert_eq!(cause(&open), Cause::Exposed, "nobody could log in");
        let allowed = "allow-plain-without-tls = true\nlisten = \"0.0.0.0:5672\"\n";
        parse(&format!("{allowed}{user}")).expect("meant");
        let admin = "admin = \"0.0.0.0:8161\"\n";
        assert_eq!(cause(&format!("{admin}{user}")), Cause::Exposed);
        let open = format!("insecure = true\n{admin}{user}");
        assert_eq!(cause(&open), Cause::Exposed, "their passwords would travel in the clear");
        parse(&format!("{admin}allow-plain-without-tls = true\n{user}")).expect("users log in");
        assert_eq!(cause(&format!("{user}{user}")), Cause::ConfigInvalid);
    }
}
