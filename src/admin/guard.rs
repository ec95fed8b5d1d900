//! Who asks: off loopback a user of the configuration, by HTTP Basic; on loopback anybody who comes
//! from there.
//!
//! ```text
//!   /healthz/…            nobody is asked: probes carry no password
//!   everything else  ──▶  Authorization: Basic … ──▶ auth.rs ─┬▶ 401   refused, paced by address
//!                                                             ├▶ 503   too many at once
//!                                                             └▶ Operator, with its rights
//!   a queue               `manage` on its name; a list shows what one may manage
//!   the rest              `manage` on every address
//! ```
//! A proxy on this machine comes from loopback, and says in a header for whom: that one is asked as
//! off loopback, and refused where there are no users.
//!
//! Invariant: what a request may do is its operator's; no handler works without one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use amqp::connection::{Password, SaslPlain};
use axum::extract::connect_info::Connected;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use broker::access::{Access, Right, Rights};
use broker::event::{Attempt, AuthVerdict};
use tokio::sync::oneshot;

use super::Refused;
use super::listener::Bounded;
use crate::auth::{Authenticator, Job, base64};

/// Whether operators have to log in.
#[derive(Clone)]
pub(crate) struct Guard {
    /// Verifies users, and says what each may do; none where there are no users.
    pub(crate) users: Option<(Authenticator, Access)>,
    /// The API is served on loopback, where nobody is asked who comes from there himself.
    pub(crate) on_loopback: bool,
}

/// What proxies say of the request's origin (RFC 7239, and what was there before it).
const FORWARDED: [&str; 2] = ["forwarded", "x-forwarded-for"];

/// The other end of a request's connection.
#[derive(Clone)]
pub(super) struct Peer {
    addr: SocketAddr,
    under_way: Arc<AtomicUsize>,
}

impl Connected<IncomingStream<'_, Bounded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        Self { addr: *stream.remote_addr(), under_way: stream.io().under_way() }
    }
}

/// A request that is being carried out: its connection is not idle.
pub(super) struct UnderWay(Arc<AtomicUsize>);

impl Peer {
    /// One more request, until what this gives is dropped.
    pub(super) fn begin(&self) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(&self.under_way))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who asks.
#[derive(Clone)]
pub(super) struct Operator {
    /// The user; empty where nobody has to log in.
    pub(super) user: String,
    /// None: everything.
    rights: Option<Arc<Rights>>,
}

impl Operator {
    /// Somebody who did not have to log in.
    pub(super) fn anybody() -> Self {
        Self { user: String::new(), rights: None }
    }

    /// Whether it may manage this queue.
    pub(super) fn manages(&self, queue: &str) -> bool {
        self.has(Right::Manage, queue)
    }

    fn has(&self, right: Right, queue: &str) -> bool {
        self.rights.as_ref().is_none_or(|rights| rights.has(right, queue))
    }

    /// Whether it has this right on this queue, or the refusal.
    pub(super) fn must(&self, right: Right, queue: &str) -> Result<(), Refused> {
        if self.has(right, queue) { Ok(()) } else { Err(self.denied(right, queue)) }
    }

    /// Whether it may manage everything, or the refusal.
    pub(super) fn must_manage_all(&self) -> Result<(), Refused> {
        match &self.rights {
            Some(rights) if !rights.has_everywhere(Right::Manage) => {
                Err(self.denied(Right::Manage, "#"))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn denied(&self, right: Right, what: &str) -> Refused {
        let why = format!("the user '{}' may not {} '{what}'", self.user, right.name());
        Refused(StatusCode::FORBIDDEN, why)
    }
}

impl Guard {
    /// Who asks with these headers.
    ///
    /// # Errors
    /// The answer to somebody who is not let in.
    pub(super) async fn operator(
        &self,
        peer: &Peer,
        headers: &HeaderMap,
    ) -> Result<Operator, Response> {
        let is_forwarded = FORWARDED.iter().any(|name| headers.contains_key(*name));
        let Some((authenticator, access)) = &self.users else {
            if self.on_loopback && is_forwarded {
                let why = "a proxy brings this request to loopback, and there are no users to ask \
                           for: configure [[users]]";
                return Err(Refused(StatusCode::FORBIDDEN, why.to_owned()).into_response());
            }
            return Ok(Operator::anybody());
        };
        if self.on_loopback && !is_forwarded {
            return Ok(Operator::anybody());
        }
        let plain = credentials(headers).ok_or_else(who_are_you)?;
        let (answer, verdict) = oneshot::channel();
        authenticator.verify(Job {
            peer: peer.addr,
            attempt: Attempt::Plain(Box::new(plain)),
            conversation: None,
            answer: Box::new(move |verdict, _| drop(answer.send(verdict))),
        });
        match verdict.await {
            Ok(AuthVerdict::Accepted { user, .. }) => {
                Ok(Operator { rights: access.rights(&user), user })
            }
            Ok(AuthVerdict::Refused | AuthVerdict::Challenge(_)) => Err(who_are_you()),
            Ok(AuthVerdict::Busy) | Err(_) => {
                let why = "too many log-ins at once; try again".to_owned();
                let mut busy = Refused(StatusCode::SERVICE_UNAVAILABLE, why).into_response();
                busy.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                Err(busy)
            }
        }
    }
}

fn who_are_you() -> Response {
    let why = "a user and its password are needed (HTTP Basic); laelaps has --user".to_owned();
    let mut response = Refused(StatusCode::UNAUTHORIZED, why).into_response();
    let wanted = HeaderValue::from_static("Basic realm=\"laelaps\", charset=\"UTF-8\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, wanted);
    response
}

/// `Authorization: Basic base64(user:password)` (RFC 7617), once.
fn credentials(headers: &HeaderMap) -> Option<SaslPlain> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (given, None) = (given.next()?.to_str().ok()?, given.next()) else { return None };
    let (scheme, encoded) = given.split_once(' ')?;
    let decoded =
        base64::decode(encoded.trim()).filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    // Wiped when it is dropped.
    let decoded = Password::new(decoded);
    let at = decoded.reveal().iter().position(|byte| *byte == b':')?;
    let (user, password) = decoded.reveal().split_at(at);
    Some(SaslPlain {
        authzid: String::new(),
        user: std::str::from_utf8(user).ok().filter(|user| !user.is_empty())?.to_owned(),
        password: Password::new(&password[1..]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_asked_follows_the_users_and_the_way() {
        let config = crate::config::Config::default();
        let users = || Some((Authenticator::start(&config).expect("started"), Access::default()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let refusal = |has_users: bool, on_loopback, header: Option<&'static str>| {
            let guard = Guard { users: has_users.then(users).flatten(), on_loopback };
            let addr = "127.0.0.1:1".parse().expect("an address");
            let peer = Peer { addr, under_way: Arc::default() };
            let mut headers = HeaderMap::new();
            headers.extend(header.map(|name| {
                let name = axum::http::HeaderName::from_static(name);
                (name, HeaderValue::from_static("for=192.0.2.1"))
            }));
            let operator = runtime.block_on(guard.operator(&peer, &headers));
            operator.err().map(|response| response.status().as_u16())
        };
        for header in [None, Some("forwarded"), Some("x-forwarded-for")] {
            assert_eq!(refusal(true, false, header), Some(401), "{header:?}");
            assert_eq!(refusal(false, false, header), None, "{header:?}: it is meant to be open");
            assert_eq!(refusal(true, true, header), header.map(|_| 401), "{header:?}");
            assert_eq!(refusal(false, true, header), header.map(|_| 403), "{header:?}");
        }
    }

    #[test]
    fn credentials_are_read_as_they_were_written_and_nothing_else_is() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.append(header::AUTHORIZATION, value.parse().expect("a header"));
            credentials(&headers)
        };
        // RFC 7617, section 2.
        let plain = read("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==").expect("sound");
        assert_eq!((&plain.user[..], plain.password.reveal()), ("Aladdin", &b"open sesame"[..]));
        let encoded = base64::encode(b"a:b:c");
        let plain = read(&format!("basic {encoded}")).expect("sound");
        assert_eq!((&plain.user[..], plain.password.reveal()), ("a", &b"b:c"[..]));
        for wrong in ["", "Basic", "Basic QWxh", "Bearer QTpi", "Basic OmI=", "Basic ?"] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
        let mut twice = HeaderMap::new();
        for value in ["Basic QTpi", "Basic QTpj"] {
            twice.append(header::AUTHORIZATION, value.parse().expect("a header"));
        }
        assert!(credentials(&twice).is_none());
        assert!(credentials(&HeaderMap::new()).is_none());
    }
}
