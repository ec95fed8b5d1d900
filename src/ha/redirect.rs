//! A member that is not live tells clients where the live is: `ha.advertise` of the other one.
//!
//! ```text
//!   the other one says that it serves, and ─┐
//!   where: host:port, amqps://host:port ────┴─▶ listen on `listen`, or on `tls-listen`
//!
//!   ─▶ TLS ─▶ SASL, as where we serve ─▶ the client's open
//!          it knows redirects ─▶ our open, close: amqp:connection:redirect, and where   [2.8.16]
//!          it does not        ─▶ the socket is closed: its own list goes on
//!
//!   no live, no address, a role of our own ─▶ nobody listens: connections are refused
//! ```
//! Libraries with a list of their own mostly end for good at an error that they do not know
//! (Proton, rhea), and some begin their list anew once they have seen an open (Proton's Python: for
//! ever, if we are its first). They are told nothing, so that we look like a port that refuses;
//! only who is in [`FOLLOWERS`] gets the redirect. What is offered for logging in, and who may, is
//! as where we serve: libraries do not try another broker after a refused log-in. TLS that fails is
//! counted and told in the log as there.
//!
//! It has a thread of its own, behind the cores: a herd of clients is none of the lease's business.
//! Invariants: no client is let in. So many are heard at once, each for so long, and no more than a
//! quarter of them from one address; others are closed. What is said fits the smallest frame that a
//! client may ask for: an error's map is bounded by the longest host (`broker::server`).
//!
//! Failure: a port that can't be listened on is tried again. One that is to serve tries for its
//! port too (`serve.rs`), until this has let it go.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use amqp::codec::{Reader, Symbol, Value, Writer};
use amqp::connection::{Config, Connection, Event, Side};
use amqp::definitions::{Condition, SaslCode};
use amqp::error::Error;
use broker::Server;
use broker::event::{Attempt, AuthVerdict};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::auth::{Authenticator, Conversation, Job, address};
use crate::driver::{Complaints, clock};
use crate::fatal::{Cause, Failure};
use crate::machine;
use crate::tls::{Tls, count};

/// Clients that follow a redirect, by `product` in the properties of their open.
const FOLLOWERS: [&str; 1] = ["QpidJMS"];

/// Clients that are heard at once.
const CLIENTS_MAX: usize = 256;
/// Of them from one address, loopback too.
const ADDRESS_CLIENTS_MAX: usize = CLIENTS_MAX / 4;
const WITHIN: Duration = Duration::from_secs(5);
const RETRY_EVERY: Duration = Duration::from_millis(200);
const READ_BYTES: usize = 4096;
/// Of a client that is told to go; so what all of them may make us keep is a few MiB.
const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// Steps of clients, each a signature at most, before the way back to the role is looked at.
const STEPS_AT_ONCE: u32 = 4;

/// Where clients come to, and how they log in.
#[derive(Clone)]
pub(crate) struct Doors {
    /// Without TLS.
    pub(crate) listen: SocketAddr,
    /// With it.
    pub(crate) tls: Option<(SocketAddr, Arc<Tls>)>,
    /// Who says who they are.
    pub(crate) authenticator: Authenticator,
}

/// The way to the thread.
pub(super) struct Redirect {
    target: watch::Sender<Option<Server>>,
}

impl Redirect {
    /// Starts the thread; nobody is sent anywhere yet.
    pub(super) fn start(doors: Doors) -> Result<Self, Failure> {
        let refused = |error: std::io::Error| {
            let what = format!("no thread to send clients to the live: {error}");
            Failure::new(Cause::ResourceRefused, what)
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .event_interval(STEPS_AT_ONCE)
            .enable_all()
            .build();
        let runtime = runtime.map_err(refused)?;
        let (target, heard) = watch::channel(None);
        std::thread::Builder::new()
            .name("redirect".to_owned())
            .spawn(move || {
                machine::give_way("redirects");
                runtime.block_on(run(doors, heard));
            })
            .map_err(refused)?;
        Ok(Self { target })
    }

    /// From now on clients are sent there, or nobody listens.
    pub(super) fn set(&self, target: Option<Server>) {
        self.target.send_replace(target);
    }
}

/// For as long as there is somebody who says where.
async fn run(doors: Doors, mut target: watch::Receiver<Option<Server>>) {
    loop {
        let server = target.borrow_and_update().clone();
        let door = server.and_then(|server| Door::new(&doors, server)).map(Arc::new);
        let changed = match door {
            None => target.changed().await,
            Some(door) => tokio::select! {
                changed = target.changed() => changed,
                () = open(&door) => Ok(()),
            },
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Hears who comes, until there is trouble. With it end those who are being heard: what they would
/// be told may not be so any more.
async fn open(door: &Arc<Door>) {
    let mut visits = Visits::default();
    let trouble = match listen(door.at) {
        Ok(listener) => loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => break error,
            };
            visits.forget_ended();
            let from = address(peer);
            if visits.has_room_for(from) {
                let door = Arc::clone(door);
                visits.begin(from, async move {
                    // A client that does not hear us out goes on in its list.
                    drop(tokio::time::timeout(WITHIN, door.receive(stream, peer)).await);
                });
            }
        },
        Err(error) => error,
    };
    tracing::debug!("clients can't be told of the live on {}: {trouble}", door.at);
    tokio::time::sleep(RETRY_EVERY).await;
}

/// Those who are being heard.
#[derive(Default)]
struct Visits {
    all: JoinSet<IpAddr>,
    of: BTreeMap<IpAddr, usize>,
}

impl Visits {
    fn forget_ended(&mut self) {
        while let Some(ended) = self.all.try_join_next() {
            let from = ended.expect("a visit neither panics nor is aborted");
            if let Some(count) = self.of.get_mut(&from) {
                *count -= 1;
            }
        }
        self.of.retain(|_, count| *count > 0);
    }

    fn has_room_for(&self, from: IpAddr) -> bool {
        let of_address = self.of.get(&from).copied().unwrap_or_default();
        self.all.len() < CLIENTS_MAX && of_address < ADDRESS_CLIENTS_MAX
    }

    fn begin(&mut self, from: IpAddr, visit: impl Future<Output = ()> + Send + 'static) {
        *self.of.entry(from).or_default() += 1;
        self.all.spawn(async move {
            visit.await;
            from
        });
    }
}

fn listen(at: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Where clients are sent, and where they come to for it.
struct Door {
    at: SocketAddr,
    tls: Option<Arc<Tls>>,
    authenticator: Authenticator,
    error: Error,
    complaints: Mutex<Complaints>,
}

impl Door {
    fn new(doors: &Doors, server: Server) -> Option<Self> {
        let (at, tls) = match (&doors.tls, server.is_secure) {
            (_, false) => (doors.listen, None),
            (Some((at, tls)), true) => (*at, Some(Arc::clone(tls))),
            (None, true) => return None,
        };
        let why = format!("the other broker of the pair is live: {server}");
        let error = Error::new(Condition::ConnectionRedirect, why);
        let error = error.with_info(|map| server.write(map));
        let (authenticator, complaints) = (doors.authenticator.clone(), Mutex::default());
        Some(Self { at, tls, authenticator, error, complaints })
    }

    /// A client that ends, or breaks the rules, is not missed.
    async fn receive(&self, stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
        let Some(tls) = &self.tls else { return self.talk(stream, peer, None).await };
        let secured = match TlsAcceptor::from(tls.served()).accept(stream).await {
            Ok(stream) => {
                let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
                tls.user_of(certificates).map(|user| (user, stream))
            }
            Err(error) => Err(error.to_string()),
        };
        match secured {
            Ok((user, stream)) => {
                count(&tls.figures.handshakes_total);
                self.talk(stream, peer, user).await
            }
            Err(why) => {
                count(&tls.figures.refused_total);
                self.complain(|complaints| complaints.say(clock(), peer, &why));
                Ok(())
            }
        }
    }

    fn complain(&self, say: impl FnOnce(&mut Complaints)) {
        say(&mut self.complaints.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn talk(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        peer: SocketAddr,
        certificate_user: Option<String>,
    ) -> std::io::Result<()> {
        let login = self.authenticator.log_in(peer, self.tls.is_some(), certificate_user);
        let Some((sasl, login)) = login.and_then(|mut login| Some((login.sasl.take()?, login)))
        else {
            let why = match self.tls {
                Some(_) => "its certificate names no user, and nobody has a password",
                None => "users log in over TLS alone",
            };
            self.complain(|complaints| complaints.say_no_way(clock(), peer, why));
            return Ok(());
        };
        let config = Config {
            container_id: "laelaps".to_owned(),
            sasl,
            max_frame_size: FRAME_BYTES_MAX,
            ..Config::default()
        };
        let mut visit = Visit {
            connection: Connection::new(config, Side::Server, clock()),
            peer,
            certificate_user: login.certificate_user,
            conversation: None,
        };
        let (mut buffer, mut out) = (vec![0; READ_BYTES], Vec::new());
        while !visit.connection.is_finished() {
            let read = stream.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            visit.connection.handle_bytes(clock(), &buffer[..read]);
            while let Some(event) = visit.connection.poll_event() {
                if !self.answer(&mut visit, event).await {
                    return Ok(());
                }
            }
            while visit.connection.poll_transmit(&mut out) {}
            stream.write_all(&out).await?;
            stream.flush().await?;
            out.clear();
        }
        stream.shutdown().await
    }

    /// False where this client is to hear nothing.
    async fn answer(&self, visit: &mut Visit, event: Event) -> bool {
        match event {
            Event::SaslAnonymous => visit.connection.sasl_outcome(SaslCode::Ok),
            Event::SaslPlain(plain) => self.verify(visit, Attempt::Plain(plain)).await,
            Event::SaslScram(scram) => self.verify(visit, Attempt::Scram(scram)).await,
            Event::SaslExternal { authzid } => {
                let user = visit.certificate_user.as_ref();
                if user.is_some_and(|user| authzid.is_empty() || authzid == *user) {
                    visit.connection.sasl_outcome(SaslCode::Ok);
                } else {
                    self.verify(visit, Attempt::Foreign(authzid)).await;
                }
            }
            Event::Opened(open) => {
                if !follows(open.properties.as_deref()) {
                    return false;
                }
                visit.connection.refuse_open(properties(), self.error.clone());
            }
            // Nothing else comes before a connection is open, and this one never is.
            Event::SessionBegun { .. }
            | Event::AttachReceived { .. }
            | Event::Attached { .. }
            | Event::Transfer { .. }
            | Event::CreditChanged { .. }
            | Event::SendReady { .. }
            | Event::PartWanted { .. }
            | Event::Part { .. }
            | Event::Aborted { .. }
            | Event::Disposition { .. }
            | Event::Drained { .. }
            | Event::DetachReceived { .. }
            | Event::Detached { .. }
            | Event::EndReceived { .. }
            | Event::Ended { .. }
            | Event::CloseReceived { .. }
            | Event::Closed { .. } => {}
        }
        true
    }

    async fn verify(&self, visit: &mut Visit, attempt: Attempt) {
        let (said, verdict) = oneshot::channel();
        self.authenticator.verify(Job {
            peer: visit.peer,
            attempt,
            conversation: visit.conversation.take(),
            // Whoever waited may have given up.
            answer: Box::new(move |verdict, kept| drop(said.send((verdict, kept)))),
        });
        let (verdict, kept) = verdict.await.unwrap_or((AuthVerdict::Busy, None));
        visit.conversation = kept;
        let connection = &mut visit.connection;
        match verdict {
            AuthVerdict::Accepted { last_word, .. } => {
                let last_word = Some(&last_word[..]).filter(|word| !word.is_empty());
                connection.sasl_outcome_with(SaslCode::Ok, last_word);
            }
            AuthVerdict::Challenge(challenge) => connection.sasl_challenge(&challenge),
            AuthVerdict::Refused => connection.sasl_outcome(SaslCode::Auth),
            AuthVerdict::Busy => connection.sasl_outcome(SaslCode::SysTemp),
        }
    }
}

/// A client that has come.
struct Visit {
    connection: Connection,
    peer: SocketAddr,
    certificate_user: Option<String>,
    /// What its log-in left behind.
    conversation: Option<Box<Conversation>>,
}

/// Whether a client that opens with these properties follows a redirect.
fn follows(properties: Option<&[u8]>) -> bool {
    let map = properties.and_then(|encoded| Reader::new(encoded).map().ok());
    let product = map.and_then(|map| map.get("product"));
    matches!(product, Some(Value::String(product)) if FOLLOWERS.contains(&product))
}

/// The property by which clients know that a close follows the open.
fn properties() -> Bytes {
    let mut encoded = Vec::new();
    Writer::new(&mut encoded).map_with(|map| {
        map.element().symbol(Symbol::new("amqp:connection-establishment-failed"));
        map.element().boolean(true);
    });
    Bytes::from(encoded)
}
