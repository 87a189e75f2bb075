//! `/v1/events`: over a WebSocket for browsers, as server-sent events for the rest.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use wrenn_api::error::ErrorBody;
use wrenn_api::event::{Event, EventKind};
use wrenn_api::id::TeamId;

use super::authentication::Caller;
use super::error::HttpError;
use super::extract::Query;
use crate::service::App;
use crate::service::events::{self, TeamEvent};

const PING_INTERVAL: Duration = Duration::from_secs(30);

/// The events of a team.
struct Subscription {
    app: Arc<App>,
    team: TeamId,
    missed: VecDeque<TeamEvent>,
    lost: bool,
    channel: broadcast::Receiver<TeamEvent>,
}

impl Subscription {
    fn new(app: &Arc<App>, team: TeamId, after: Option<u64>) -> Self {
        let (missed, lost, channel) = app.events.subscribe(after);
        Self {
            app: Arc::clone(app),
            team,
            missed: missed.into(),
            lost,
            channel,
        }
    }

    /// The next event; none when the server stops.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if std::mem::take(&mut self.lost) {
                return Some(events::event(EventKind::Resync, self.app.clock.now()));
            }
            let event = match self.missed.pop_front() {
                Some(event) => event,
                None => tokio::select! {
                    received = self.channel.recv() => match received {
                        Ok(event) => event,
                        Err(RecvError::Lagged(_)) => {
                            self.lost = true;
                            continue;
                        }
                        Err(RecvError::Closed) => return None,
                    },
                    () = self.app.shutdown.cancelled() => return None,
                },
            };
            if event.is_for(&self.team) {
                return Some(event.event);
            }
        }
    }
}

/// Follow events
///
/// `Event` in JSON: as server-sent events, which `Last-Event-ID` resumes, or over a WebSocket.
/// `resync` says that some were missed: read the lists again.
#[utoipa::path(
    get, path = "/v1/events", tag = "events",
    params(
        ("after" = Option<u64>, Query, description = "Begin after this number"),
        ("Last-Event-ID" = Option<String>, Header, description = "The same, as clients of server-sent events send it"),
    ),
    responses(
        (status = 200, body = Event, content_type = "text/event-stream"),
        (status = 101, description = "Event in text frames"),
        (status = "default", body = ErrorBody),
    )
)]
pub(crate) async fn events(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    headers: HeaderMap,
    mut query: Query,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, HttpError> {
    let after: Option<u64> = query.parse("after", "the number of an event")?;
    query.finish()?;
    let resumed = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let subscription = Subscription::new(&app, team, after.or(resumed));
    if let Ok(upgrade) = upgrade {
        let tasks = app.tasks.clone();
        return Ok(upgrade.on_upgrade(move |socket| async move {
            if let Err(error) = tasks.spawn(serve(socket, subscription)).await {
                tracing::error!(%error, "failed to serve a WebSocket");
            }
        }));
    }
    let stream = futures::stream::unfold(subscription, |mut subscription| async {
        let event = subscription.next().await?;
        let mut sent = sse::Event::default().event(event.kind.as_str());
        if event.seq > 0 {
            sent = sent.id(event.seq.to_string());
        }
        // An event always has a JSON.
        let sent = sent.json_data(&event).unwrap_or_default();
        Some((Ok::<_, Infallible>(sent), subscription))
    });
    Ok(Sse::new(stream)
        .keep_alive(KeepAlive::new().interval(PING_INTERVAL))
        .into_response())
}

async fn serve(mut socket: WebSocket, mut subscription: Subscription) {
    let mut pings = tokio::time::interval(PING_INTERVAL);
    pings.reset();
    loop {
        let message = tokio::select! {
            event = subscription.next() => match event {
                Some(event) => match serde_json::to_string(&event) {
                    Ok(text) => Message::Text(text.into()),
                    Err(_) => continue,
                },
                None => return,
            },
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        if socket.send(message).await.is_err() {
            return;
        }
    }
}
