//! `/api/v1/point`: one moment of all shards, for who copies their logs.
//!
//! ```text
//!   POST    all: Freeze ─▶ all: Point ─▶ all: Thaw     {"data", "hold_seconds", "shards": [...]}
//!   PUT     all: KeepPoint                             {"held": true}, or 409: it is over
//!   DELETE  all: ForgetPoint
//! ```
//! Invariants: moments are named one after the other, and only while no log is held. An answer with
//! a moment is one in which every shard took no mail from before the first point to after the last
//! (`broker/src/shard/point.rs`); where that took too long, it is tried again and nothing named.
//! Failure: whatever was frozen or held is let go.

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use broker::admin::{AdminReply, AdminRequest, PointAt};
use broker::limits::HOLD_MAX;
use serde_json::{Value, json};

use super::guard::Operator;
use super::{ANSWER_WITHIN, Desk, Refused, confused};

/// A busy core answers late, so that others thaw: then all of them are asked again.
const TRIES: u32 = 5;

/// `POST`.
pub(super) async fn name(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<Value>, Refused> {
    operator.must_manage_all()?;
    let _alone = desk.naming.lock().await;
    for _ in 0..TRIES {
        if let Some(points) = desk.point().await? {
            let shards: Vec<Value> = points.iter().enumerate().map(shard_json).collect();
            let data = desk.node.facts().map(|facts| facts.data.clone());
            tracing::info!(user = operator.user, "the logs are held for a copy of them");
            return Ok(Json(json!({
                "data": data,
                "hold_seconds": HOLD_MAX.as_secs(),
                "shards": shards,
            })));
        }
    }
    let why = "the shards were too busy to name one moment; try again".to_owned();
    Err(Refused(StatusCode::SERVICE_UNAVAILABLE, why))
}

fn shard_json((shard, point): (usize, &PointAt)) -> Value {
    json!({ "shard": shard, "first_lsn": point.first.0, "durable_lsn": point.durable.0 })
}

/// `PUT`.
pub(super) async fn keep(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<Value>, Refused> {
    operator.must_manage_all()?;
    for reply in desk.ask_all(AdminRequest::KeepPoint).await? {
        let AdminReply::Held(is_held) = reply else { return Err(confused("KeepPoint")) };
        if !is_held {
            let why = "the logs are held no longer: the hold was not renewed in time, or a log was \
                       full and the broker comes first";
            return Err(Refused(StatusCode::CONFLICT, why.to_owned()));
        }
    }
    Ok(Json(json!({ "held": true })))
}

/// `DELETE`.
pub(super) async fn forget(
    State(desk): State<Desk>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<Value>, Refused> {
    operator.must_manage_all()?;
    desk.ask_all(AdminRequest::ForgetPoint).await?;
    Ok(Json(json!({ "held": false })))
}

impl Desk {
    /// One moment of all shards; `None` if one of them could not be kept frozen for so long.
    async fn point(&self) -> Result<Option<Vec<PointAt>>, Refused> {
        let frozen = self.ask_each(AdminRequest::Freeze, ANSWER_WITHIN).await;
        let replies = match &frozen {
            Ok(_) => self.ask_each(AdminRequest::Point, ANSWER_WITHIN).await,
            Err(_) => Ok(Vec::new()),
        };
        let thawed = self.ask_each(AdminRequest::Thaw, ANSWER_WITHIN).await?;
        frozen?;
        let were_frozen = thawed.iter().all(|reply| *reply == AdminReply::Thawed(true));
        let points = replies.and_then(|replies| {
            replies.into_iter().map(point_of).collect::<Result<Option<Vec<_>>, _>>()
        });
        match points {
            Ok(Some(points)) if were_frozen => Ok(Some(points)),
            Ok(_) => {
                self.ask_each(AdminRequest::ForgetPoint, ANSWER_WITHIN).await?;
                Ok(None)
            }
            Err(refused) => {
                self.ask_each(AdminRequest::ForgetPoint, ANSWER_WITHIN).await?;
                Err(refused)
            }
        }
    }
}

/// `None` if the shard was not frozen any more.
fn point_of(reply: AdminReply) -> Result<Option<PointAt>, Refused> {
    if reply == AdminReply::Thawed(false) {
        return Ok(None);
    }
    let AdminReply::Point(point) = reply else { return Err(confused("Point")) };
    Ok(Some(point))
}
