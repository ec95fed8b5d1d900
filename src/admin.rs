//! HTTP for operators: health, metrics, management. One thread of its own, on tokio and axum.
//!
//! ```text
//!   GET    /healthz/live                        200 while every core's loop turns
//!   GET    /healthz/ready                       200 when it serves, or is a backup in sync; else
//!                                               503 and why
//!   GET    /metrics                             Prometheus text
//!   GET    /api/v1/queues                       every queue
//!   GET    /api/v1/queues/{name}                one
//!   GET    /api/v1/queues/{name}/messages?count=N   peek, oldest first
//!   POST   /api/v1/queues/{name}/purge          remove what is available
//!   GET    /api/v1/connections                  every connection
//!   DELETE /api/v1/connections/{id}             close one
//!   POST   /api/v1/point                        name one moment of all shards, hold their logs
//!   PUT    /api/v1/point                        hold them for another while (`src/backup.rs`)
//!   DELETE /api/v1/point                        hold them no longer
//!   GET    /api/v1/ha                           this member of a pair
//!   POST   /api/v1/ha/switchover                have the other one be live
//!   POST   /api/v1/ha/bootstrap?without=NODE    have this one make the pair's first record
//!   POST   /api/v1/ha/promote?lose=NODE         have this one serve, whatever is lost by it
//! ```
//! A request asks the shards over their cores' inboxes and merges the answers. At most
//! [`REQUESTS_MAX`] are under way; the next ones wait their turn here, not at a shard.
//!
//! Invariants: nothing here can stall a core. A web page that the operator happens to have open
//! cannot command the broker: requests with an `Origin` are refused, and on loopback so are foreign
//! `Host` names (DNS rebinding). Off loopback, or behind a proxy there, operators log in
//! (`guard.rs`). No secret is in any answer.
//!
//! Failure: `{"error": why}` below `/api`, whoever refuses, the router included. A shard that does
//! not answer within [`ANSWER_WITHIN`] makes it 503 with its number. A purge is answered when all
//! is gone, which takes as long as the queue is deep: it has turns of its own, [`PURGE_WITHIN`],
//! and a task of its own, so that one whose caller has hung up ends in the log as any other.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{ConnectInfo, Extension, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use broker::ConnId;
use broker::access::Right;
use broker::admin::{AdminReply, AdminRequest, ConnectionStat, QueueStat, ShardStats, Undeletable};
use journal::ShardId;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};

use crate::fatal::{Cause, Failure};
use crate::ha::Command;
use crate::node::{Input, Node, Stage};

mod guard;
mod json;
mod listener;
mod metrics;
mod point;

pub(crate) use guard::Guard;
use guard::{Operator, Peer};

/// Requests that are carried out at the same time.
const REQUESTS_MAX: usize = 16;

/// A shard answers within this, or the request fails.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Purges that are waited for at the same time.
const PURGES_MAX: usize = 4;

/// A purge that takes longer goes on, but nobody hears of its end.
const PURGE_WITHIN: Duration = Duration::from_secs(600);

/// What a handler has at hand.
#[derive(Clone)]
struct Desk {
    node: Arc<Node>,
    turns: Arc<Semaphore>,
    purges: Arc<Semaphore>,
    /// Who names a moment of all shards.
    naming: Arc<tokio::sync::Mutex<()>>,
    guard: Guard,
}

/// Listen, so that the address is known and taken.
///
/// # Errors
/// What the kernel said.
pub(crate) fn listen(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serve on `listener` from a thread of its own, until the process ends.
///
/// # Errors
/// The machine refused the thread or the runtime.
pub(crate) fn serve(listener: TcpListener, node: Arc<Node>, guard: Guard) -> Result<(), Failure> {
    let refused = |error: std::io::Error| {
        Failure::new(Cause::ResourceRefused, format!("the admin thread cannot start: {error}"))
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(refused)?;
    let turns = Arc::new(Semaphore::new(REQUESTS_MAX));
    let purges = Arc::new(Semaphore::new(PURGES_MAX));
    let naming = Arc::default();
    let app = app(Desk { node, turns, purges, naming, guard });
    std::thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || {
            let served = runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let app = app.into_make_service_with_connect_info::<Peer>();
                axum::serve(listener::Bounded::new(listener), app).await
            });
            if let Err(error) = served {
                tracing::error!("the admin API has ended: {error}; the broker goes on without it");
            }
        })
        .map_err(refused)?;
    Ok(())
}

fn app(desk: Desk) -> Router {
    Router::new()
        .route("/healthz/live", get(live))
        .route("/healthz/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/v1/queues", get(queues))
        .route("/api/v1/queues/{name}", get(queue).delete(delete_queue))
        .route("/api/v1/queues/{name}/messages", get(peek))
        .route("/api/v1/queues/{name}/purge", post(purge))
        .route("/api/v1/connections", get(connections))
        .route("/api/v1/point", post(point::name).put(point::keep).delete(point::forget))
        .route("/api/v1/connections/{id}", delete(close_connection))
        .route("/api/v1/ha", get(ha))
        .route("/api/v1/ha/switchover", post(switch_over))
        .route("/api/v1/ha/bootstrap", post(bootstrap))
        .route("/api/v1/ha/promote", post(promote))
        .fallback(no_such_path)
        .method_not_allowed_fallback(not_that_method)
        .layer(middleware::from_fn_with_state(desk.clone(), admit))
        .with_state(desk)
}

/// Why a request fails, as `{"error": …}`.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

/// What the router cannot read is refused in the API's own form.
impl From<PathRejection> for Refused {
    fn from(rejection: PathRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Refused {
    fn from(rejection: QueryRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

async fn no_such_path(request: Request) -> Refused {
    let path = request.uri().path();
    Refused(StatusCode::NOT_FOUND, format!("there is no `{path}`: see /api/v1/queues"))
}

async fn not_that_method(request: Request) -> Refused {
    let (method, path) = (request.method(), request.uri().path());
    Refused(StatusCode::METHOD_NOT_ALLOWED, format!("`{path}` takes no {method}"))
}

/// Browsers send `Origin` and cannot leave it out: no page may command the broker.
async fn admit(
    State(desk): State<Desk>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let _under_way = peer.begin();
    let headers = request.headers();
    if headers.contains_key(header::ORIGIN) {
        let why = "requests of web pages (with an Origin) are refused";
        return Refused(StatusCode::FORBIDDEN, why.to_owned()).into_response();
    }
    if desk.guard.on_loopback && !names_this_machine(headers) {
        let why = "the Host must be localhost or an address";
        return Refused(StatusCode::FORBIDDEN, why.to_owned()).into_response();
    }
    let operator = if request.uri().path().starts_with("/healthz/") {
        Ok(Operator::anybody())
    } else {
        desk.guard.operator(&peer, request.headers()).await
    };
    match operator {
        Ok(operator) => {
            request.extensions_mut().insert(operator);
            next.run(request).await
        }
        Err(response) => response,
    }
}

fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

impl Desk {
    /// Ask one shard.
    async fn ask(
        &self,
        shard: ShardId,
        request: AdminRequest,
        within: Duration,
    ) -> Result<AdminReply, Refused> {
        let unavailable = |why| Refused(StatusCode::SERVICE_UNAVAILABLE, why);
        let Some(inbox) = self.node.inbox_of(shard) else {
            return Err(unavailable(self.node.stage().reason().to_owned()));
        };
        let (answer, answered) = oneshot::channel();
        inbox.put(Input::Admin { shard, request, answer });
        match tokio::time::timeout(within, answered).await {
            Ok(Ok(AdminReply::Failed(why))) => Err(Refused(StatusCode::CONFLICT, why)),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(unavailable(format!("shard {} is gone", shard.0))),
            Err(_) => Err(unavailable(format!(
                "shard {} did not answer within {} s",
                shard.0,
                within.as_secs()
            ))),
        }
    }

    /// Ask every shard, in order.
    async fn ask_all(&self, request: AdminRequest) -> Result<Vec<AdminReply>, Refused> {
        let _turn = self.turns.acquire().await.map_err(|_| closed())?;
        self.ask_each(request, ANSWER_WITHIN).await
    }

    async fn ask_each(
        &self,
        request: AdminRequest,
        within: Duration,
    ) -> Result<Vec<AdminReply>, Refused> {
        self.must_serve()?;
        let mut replies = Vec::new();
        for shard in 0..self.node.shards() {
            replies.push(self.ask(ShardId(shard), request.clone(), within).await?);
        }
        Ok(replies)
    }

    /// Asks one shard after the other, until one knows of what is asked for. What a command did is
    /// not done again by the next shard.
    async fn find<T>(
        &self,
        request: AdminRequest,
        within: Duration,
        known: impl Fn(AdminReply) -> Result<Option<T>, Refused>,
    ) -> Result<Option<T>, Refused> {
        self.must_serve()?;
        for shard in 0..self.node.shards() {
            let reply = self.ask(ShardId(shard), request.clone(), within).await?;
            if let Some(found) = known(reply)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn must_serve(&self) -> Result<(), Refused> {
        match self.node.stage() {
            Stage::Ready | Stage::Draining => Ok(()),
            Stage::Locking | Stage::Recovering | Stage::Joining | Stage::Backup | Stage::Fenced => {
                let why = self.node.stage().reason().to_owned();
                Err(Refused(StatusCode::SERVICE_UNAVAILABLE, why))
            }
        }
    }

    async fn queues(&self) -> Result<Vec<QueueStat>, Refused> {
        let mut queues = Vec::new();
        for reply in self.ask_all(AdminRequest::Queues).await? {
            let AdminReply::Queues(some) = reply else { return Err(confused("Queues")) };
            queues.extend(some);
        }
        queues.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(queues)
    }

    /// How many messages were removed.
    async fn purge(&self, name: &str) -> Result<u64, Refused> {
        let request = AdminRequest::Purge { queue: name.to_owned() };
        let purged = self.find(request, PURGE_WITHIN, |reply| {
            let AdminReply::Purged(count) = reply else { return Err(confused("Purge")) };
            Ok(count)
        });
        purged.await?.ok_or_else(|| no_queue(name))
    }

    /// Deletes a queue that is empty.
    async fn delete(&self, name: &str) -> Result<(), Refused> {
        let _turn = self.turns.acquire().await.map_err(|_| closed())?;
        let request = AdminRequest::Delete { queue: name.to_owned() };
        let deleted = self.find(request, ANSWER_WITHIN, |reply| {
            let AdminReply::Deleted(deleted) = reply else { return Err(confused("Delete")) };
            Ok(deleted)
        });
        let conflict = |why: String| Err(Refused(StatusCode::CONFLICT, why));
        match deleted.await {
            Ok(Some(Ok(()))) => Ok(()),
            Ok(Some(Err(Undeletable::HasMessages(count)))) => {
                let why = "purge it first, or let its consumers settle what they hold";
                conflict(format!("'{name}' holds {count} messages: {why}"))
            }
            Ok(Some(Err(Undeletable::Temporary))) => {
                conflict(format!("'{name}' goes with the link that asked for it"))
            }
            Ok(None) => Err(no_queue(name)),
            // It may be on its way to the disk, or to the other member.
            Err(Refused(StatusCode::SERVICE_UNAVAILABLE, why)) => Err(Refused(
                StatusCode::SERVICE_UNAVAILABLE,
                format!(
                    "{why}; '{name}' may be deleted later, or be gone: look before you ask again"
                ),
            )),
            Err(other) => Err(other),
        }
    }

    async fn connections(&self) -> Result<Vec<ConnectionStat>, Refused> {
        let mut connections = Vec::new();
        for reply in self.ask_all(AdminRequest::Connections).await? {
            let AdminReply::Connections(some) = reply else { return Err(confused("Connections")) };
            connections.extend(some);
        }
        connections.sort_by_key(|connection| connection.conn);
        Ok(connections)
    }

    async fn stats(&self) -> Result<Vec<ShardStats>, Refused> {
        let mut stats = Vec::new();
        for reply in self.ask_all(AdminRequest::Stats).await? {
            let AdminReply::Stats(some) = reply else { return Err(confused("Stats")) };
            stats.push(*some);
        }
        Ok(stats)
    }
}

fn closed() -> Refused {
    Refused(StatusCode::SERVICE_UNAVAILABLE, "stopping".to_owned())
}

/// A shard answered another question than it was asked: a defect.
fn confused(question: &str) -> Refused {
    let why = format!("a shard gave a wrong kind of answer to {question}");
    Refused(StatusCode::INTERNAL_SERVER_ERROR, why)
}

fn no_queue(name: &str) -> Refused {
    Refused(StatusCode::NOT_FOUND, format!("there is no queue `{name}`"))
}

async fn live(State(desk): State<Desk>) -> Response {
    for (number, inbox) in desk.node.inboxes().iter().enumerate() {
        let (answer, answered) = oneshot::channel();
        inbox.put(Input::Ping(answer));
        if !matches!(tokio::time::timeout(ANSWER_WITHIN, answered).await, Ok(Ok(()))) {
            let why = format!("core {number} does not answer\n");
            return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
        }
    }
    "live\n".into_response()
}

async fn ready(State(desk): State<Desk>) -> Response {
    let stage = desk.node.stage();
    let status = if stage.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{}\n", stage.reason())).into_response()
}

async fn metrics(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
) -> Result<Response, Refused> {
    operator.must_manage_all()?;
    // Before the shards answer there is still something to say: that they do not.
    let shards = desk.stats().await.unwrap_or_default();
    let queues = desk.queues().await.unwrap_or_default();
    let pair = ask_ha(&desk, Command::Status).await.ok();
    let text = metrics::text(&desk.node, &shards, &queues, pair.as_ref());
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn queues(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<Value>, Refused> {
    let mut queues = desk.queues().await?;
    queues.retain(|queue| operator.manages(&queue.name));
    Ok(Json(json!({ "queues": queues.iter().map(json::queue).collect::<Vec<_>>() })))
}

/// The one parameter of a path, or why it cannot be read.
type InPath<T> = Result<Path<T>, PathRejection>;

async fn queue(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
    name: InPath<String>,
) -> Result<Json<Value>, Refused> {
    let Path(name) = name?;
    operator.must(Right::Manage, &name)?;
    let queues = desk.queues().await?;
    let found = queues.iter().find(|queue| queue.name == name).ok_or_else(|| no_queue(&name))?;
    Ok(Json(json::queue(found)))
}

/// How many messages to look at.
#[derive(serde::Deserialize)]
struct Peek {
    #[serde(default = "Peek::count_default")]
    count: usize,
}

impl Peek {
    fn count_default() -> usize {
        10
    }
}

async fn peek(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
    name: InPath<String>,
    query: Result<Query<Peek>, QueryRejection>,
) -> Result<Json<Value>, Refused> {
    let (Path(name), Query(Peek { count })) = (name?, query?);
    operator.must(Right::Manage, &name)?;
    let count_max = count.clamp(1, broker::limits::PEEK_MESSAGES_MAX);
    let _turn = desk.turns.acquire().await.map_err(|_| closed())?;
    let request = AdminRequest::Peek { queue: name.clone(), count_max };
    let peeked = desk.find(request, ANSWER_WITHIN, |reply| {
        let AdminReply::Peeked(messages) = reply else { return Err(confused("Peek")) };
        Ok(messages)
    });
    let messages = peeked.await?.ok_or_else(|| no_queue(&name))?;
    let messages: Vec<Value> = messages.iter().map(json::message).collect();
    Ok(Json(json!({ "queue": name, "messages": messages })))
}

async fn purge(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
    name: InPath<String>,
) -> Result<Json<Value>, Refused> {
    let Path(name) = name?;
    operator.must(Right::Manage, &name)?;
    let turn = Arc::clone(&desk.purges).acquire_owned().await.map_err(|_| closed())?;
    tracing::info!(queue = name, user = operator.user, "a purge was asked for by an operator");
    let purging = tokio::spawn(async move {
        let _turn = turn;
        let purged = desk.purge(&name).await;
        let user = operator.user;
        match &purged {
            Ok(count) => tracing::info!(queue = name, count, user, "purged by an operator"),
            Err(Refused(_, why)) => {
                tracing::warn!(queue = name, user, "an operator's purge has no good end: {why}");
            }
        }
        purged.map(|count| Json(json!({ "queue": name, "purged": count })))
    });
    purging.await.map_err(|_| closed())?
}

async fn delete_queue(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
    name: InPath<String>,
) -> Result<Json<Value>, Refused> {
    let Path(name) = name?;
    operator.must(Right::Delete, &name)?;
    tracing::info!(queue = name, user = operator.user, "a deletion was asked for by an operator");
    let deleting = tokio::spawn(async move {
        let deleted = desk.delete(&name).await;
        let user = operator.user;
        match &deleted {
            Ok(()) => tracing::info!(queue = name, user, "deleted by an operator"),
            Err(Refused(_, why)) => {
                tracing::warn!(queue = name, user, "an operator's deletion has no good end: {why}");
            }
        }
        deleted.map(|()| Json(json!({ "queue": name, "deleted": true })))
    });
    deleting.await.map_err(|_| closed())?
}

async fn connections(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<Value>, Refused> {
    operator.must_manage_all()?;
    let connections = desk.connections().await?;
    Ok(Json(json!({ "connections": connections.iter().map(json::connection).collect::<Vec<_>>() })))
}

async fn close_connection(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
    id: InPath<u64>,
) -> Result<Json<Value>, Refused> {
    let Path(id) = id?;
    operator.must_manage_all()?;
    for reply in desk.ask_all(AdminRequest::CloseConnection(ConnId(id))).await? {
        let AdminReply::ConnectionClosed(was_there) = reply else {
            return Err(confused("CloseConnection"));
        };
        if was_there {
            tracing::info!(connection = id, user = operator.user, "closed by an operator");
            return Ok(Json(json!({ "id": id, "closed": true })));
        }
    }
    Err(Refused(StatusCode::NOT_FOUND, format!("there is no connection {id}")))
}

/// Ask who decides about the pair.
async fn ask_ha<T>(
    desk: &Desk,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, Refused> {
    let Some(pair) = desk.node.ha() else {
        let why = "this broker is of no pair: there is no [ha] in its configuration";
        return Err(Refused(StatusCode::NOT_FOUND, why.to_owned()));
    };
    let (answer, answered) = oneshot::channel();
    // It ends with the process.
    drop(pair.send(command(answer)));
    match tokio::time::timeout(ANSWER_WITHIN, answered).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => {
            let why = "the pair's thread does not answer";
            Err(Refused(StatusCode::SERVICE_UNAVAILABLE, why.to_owned()))
        }
    }
}

async fn ha(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<Value>, Refused> {
    operator.must_manage_all()?;
    ask_ha(&desk, Command::Status).await.map(Json)
}

async fn switch_over(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<Value>, Refused> {
    operator.must_manage_all()?;
    match ask_ha(&desk, Command::SwitchOver).await? {
        Ok(()) => {
            tracing::info!(user = operator.user, "a switchover by an operator");
            Ok(Json(json!({ "switchover": true })))
        }
        Err(why) => Err(Refused(StatusCode::CONFLICT, why)),
    }
}

/// Names the member whose data an operator gives up.
#[derive(serde::Deserialize)]
struct Without {
    #[serde(alias = "lose")]
    without: String,
}

async fn bootstrap(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
    query: Result<Query<Without>, QueryRejection>,
) -> Result<Json<Value>, Refused> {
    overrule(&desk, &operator, query, "bootstrap", Command::Bootstrap).await
}

async fn promote(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
    query: Result<Query<Without>, QueryRejection>,
) -> Result<Json<Value>, Refused> {
    overrule(&desk, &operator, query, "promote", Command::Promote).await
}

async fn overrule(
    desk: &Desk,
    operator: &Operator,
    query: Result<Query<Without>, QueryRejection>,
    what: &'static str,
    command: impl FnOnce(String, oneshot::Sender<Result<(), String>>) -> Command,
) -> Result<Json<Value>, Refused> {
    operator.must_manage_all()?;
    let Query(Without { without }) = query?;
    tracing::warn!(user = operator.user, without, "{what}: asked for by an operator");
    match ask_ha(desk, |answer| command(without, answer)).await? {
        Ok(()) => Ok(Json(json!({ what: true }))),
        Err(why) => Err(Refused(StatusCode::CONFLICT, why)),
    }
}

#[cfg(test)]
mod tests;
