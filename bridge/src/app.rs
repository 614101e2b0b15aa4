//! The HTTP surface.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{
        rejection::QueryRejection, ConnectInfo, FromRequestParts, Path, Query, Request, State,
    },
    http::{
        header::{AUTHORIZATION, CACHE_CONTROL, HOST, RETRY_AFTER, WWW_AUTHENTICATE},
        request::Parts,
        uri::Authority,
        HeaderName, HeaderValue, StatusCode,
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
    Extension, Json, Router,
};
use droidrelay_wire::{
    command::{check_id, lease_from_seconds},
    session::{Properties, Session},
    Command, StreamState,
};
use serde::Deserialize;
use serde_json::{json, Map, Value};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{timeout_at, Instant},
};
use tower_http::limit::RequestBodyLimitLayer;
use tracing::{info, warn};

use crate::{
    auth::{Auth, Denial, User},
    config::{Config, Watch},
    fleet::{Fleet, Link, View},
    robots::Robot,
};

/// Nothing that is sent here has a body worth reading.
const MAX_BODY: usize = 16 * 1024;
/// Longest `wait` in seconds: proxies give up a request after a minute.
const MAX_WAIT: f64 = 60.0;

/// What the requests share.
pub struct Bridge {
    auth: Auth,
    fleet: Arc<Fleet>,
    session: Session,
    watch: Watch,
    start_expiry: Duration,
    ack_timeout: Duration,
    closing: watch::Sender<bool>,
}

impl Bridge {
    /// Starts the MQTT session on `runtime`; does not wait for the broker.
    pub fn start(config: Config, runtime: &Handle) -> Result<Arc<Self>, String> {
        let fleet = Arc::new(Fleet::new(config.directory));
        let listener = fleet.clone();
        let auth = Auth::new(config.users, config.failures)?;
        Ok(Arc::new(Bridge {
            auth,
            session: Session::spawn(runtime, config.mqtt, move |event| listener.apply(event)),
            fleet,
            watch: config.watch,
            start_expiry: config.start_expiry,
            ack_timeout: config.ack_timeout,
            closing: watch::Sender::new(false),
        }))
    }

    /// Makes requests that wait answer at once.
    pub fn begin_close(&self) {
        self.closing.send_replace(true);
    }

    /// Leaves the broker cleanly where no request is left.
    pub async fn close(self: Arc<Self>) {
        if let Some(bridge) = Arc::into_inner(self) {
            bridge.session.stop(Vec::new()).await;
        }
    }

    /// Publishes and waits for the broker's acknowledgement; 503 where it does not come.
    async fn publish(&self, robot: &Robot, command: &Command) -> Result<(), Failure> {
        let deadline = Instant::now() + self.ack_timeout;
        if let Link::Down(reason) = self.fleet.link_decided(deadline).await {
            return Err(Failure::unavailable(format!(
                "the MQTT broker is out of reach: {reason}"
            )));
        }
        let properties = Properties {
            expiry: matches!(command, Command::Start { .. }).then_some(self.start_expiry),
            ..Properties::default()
        };
        let answer = self
            .session
            .publish(&robot.topic, command.to_payload(), properties);
        match timeout_at(deadline, answer).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(err)) => Err(Failure::unavailable(err.to_string())),
            Err(_) => Err(Failure::unavailable(format!(
                "the MQTT broker has not acknowledged within {} s: the command may still arrive",
                self.ack_timeout.as_secs()
            ))),
        }
    }

    fn describe(&self, robot: &Robot) -> Value {
        let View { online, state } = self.fleet.view(&robot.name);
        let mut urls = Map::new();
        for (name, url) in [
            ("rtsp", &self.watch.rtsp),
            ("hls", &self.watch.hls),
            ("webrtc", &self.watch.webrtc),
        ] {
            if let Some(url) = url {
                urls.insert(name.into(), url.fill(robot).into());
            }
        }
        let online = match self.fleet.link() {
            Link::Up(_) => Some(online.unwrap_or(false)),
            _ => None,
        };
        json!({
            "robot": robot.name,
            "topic": robot.topic,
            "path": robot.path,
            "online": online,
            "state": state.as_deref(),
            "watch": urls,
        })
    }

    fn broker(&self) -> Value {
        match self.fleet.link() {
            Link::Up(_) => json!({ "connected": true }),
            Link::Connecting => json!({ "connected": false, "error": "connecting" }),
            Link::Down(reason) => json!({ "connected": false, "error": reason }),
        }
    }
}

/// The router; to be served with the peer's address as [`ConnectInfo`].
pub fn app(bridge: Arc<Bridge>) -> Router {
    let behind_credential = Router::new()
        .route("/stream/{verb}", post(default_command))
        .route("/robots", get(robots))
        .route("/robots/{robot}", get(robot))
        .route("/robots/{robot}/stream/{verb}", post(robot_command))
        .route_layer(middleware::from_fn_with_state(bridge.clone(), authenticate));
    Router::new()
        .route("/", get(index))
        .route("/healthz", get(health))
        .merge(behind_credential)
        .fallback(async || Failure::new(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            Failure::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not take this method",
            )
        })
        .layer(RequestBodyLimitLayer::new(MAX_BODY))
        .layer(middleware::map_response(harden))
        .with_state(bridge)
}

async fn index() -> Json<Value> {
    Json(json!({ "msg": "Media bridge service running!" }))
}

/// Open to everybody, so it tells no address.
async fn health(State(bridge): State<Arc<Bridge>>) -> (StatusCode, Json<Value>) {
    match bridge.fleet.link() {
        Link::Up(_) => (StatusCode::OK, Json(json!({ "status": "ok" }))),
        _ => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({ "status": "the MQTT broker is out of reach" })),
        ),
    }
}

async fn robots(
    State(bridge): State<Arc<Bridge>>,
    Extension(user): Extension<Arc<User>>,
) -> Json<Value> {
    let names = bridge.fleet.names();
    let robots: Vec<Value> = names
        .iter()
        .filter(|name| user.may_use(name))
        .filter_map(|name| bridge.fleet.directory.robot(name))
        .map(|robot| bridge.describe(&robot))
        .collect();
    Json(json!({ "robots": robots, "broker": bridge.broker() }))
}

async fn robot(State(bridge): State<Arc<Bridge>>, Chosen(robot): Chosen) -> Json<Value> {
    // Right after the connection the retained topics are still on their way.
    bridge.fleet.settled_view(&robot.name).await;
    let mut answer = bridge.describe(&robot);
    answer["broker"] = bridge.broker();
    Json(answer)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandQuery {
    viewer: Option<String>,
    lease: Option<f64>,
    wait: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verb {
    Start,
    Stop,
}

type CommandParameters = Result<Query<CommandQuery>, QueryRejection>;

/// The endpoints of the published system: their answer has nothing but `msg` as long as there
/// is nothing that the caller must know.
async fn default_command(
    State(bridge): State<Arc<Bridge>>,
    Extension(user): Extension<Arc<User>>,
    Path(verb): Path<String>,
    query: CommandParameters,
) -> Result<Json<Value>, Failure> {
    let verb = Verb::parse(&verb)?;
    let robot = bridge.fleet.directory.default_robot().ok_or_else(|| {
        Failure::new(
            StatusCode::NOT_FOUND,
            "there is no default robot: name one, /robots/NAME/stream/start, or set robots.default",
        )
    })?;
    check_right(&user, &robot.name)?;
    let mut answer = command(&bridge, &user, &robot, verb, query).await?;
    if answer.get("online") == Some(&Value::Bool(true)) {
        answer.remove("online");
    }
    Ok(Json(answer.into()))
}

async fn robot_command(
    State(bridge): State<Arc<Bridge>>,
    Extension(user): Extension<Arc<User>>,
    Chosen(robot): Chosen,
    Path((_, verb)): Path<(String, String)>,
    query: CommandParameters,
) -> Result<Json<Value>, Failure> {
    let mut answer = command(&bridge, &user, &robot, Verb::parse(&verb)?, query).await?;
    answer.insert("robot".into(), robot.name.into());
    Ok(Json(answer.into()))
}

async fn command(
    bridge: &Bridge,
    user: &User,
    robot: &Robot,
    verb: Verb,
    query: CommandParameters,
) -> Result<Map<String, Value>, Failure> {
    let Query(query) = query.map_err(|err| Failure::bad_request(err.body_text()))?;
    if let Some(id) = &query.viewer {
        check_id(id).map_err(|err| Failure::bad_request(format!("viewer: {err}")))?;
    }
    let lease = query
        .lease
        .map(lease_from_seconds)
        .transpose()
        .map_err(|err| Failure::bad_request(err.to_string()))?;
    let wait = match query.wait {
        None => None,
        Some(wait) if (0.0..=MAX_WAIT).contains(&wait) => Some(Duration::from_secs_f64(wait)),
        Some(wait) => {
            return Err(Failure::bad_request(format!(
                "wait {wait}: give seconds from 0 to {MAX_WAIT}"
            )))
        }
    };
    let (message, word) = match verb {
        Verb::Start => (
            "Published start",
            Command::Start {
                id: query.viewer.clone(),
                lease,
            },
        ),
        Verb::Stop => (
            "Published stop",
            Command::Stop {
                id: query.viewer.clone(),
            },
        ),
    };
    let published = bridge.publish(robot, &word).await;
    let (by, viewer) = (&user.name, query.viewer.as_deref().unwrap_or("*"));
    if let Err(failure) = published {
        warn!(
            robot = robot.name,
            ?by,
            ?viewer,
            "not published {}: {}",
            verb.as_str(),
            failure.reason
        );
        return Err(failure);
    }
    info!(
        robot = robot.name,
        ?by,
        ?viewer,
        "published {}",
        verb.as_str()
    );

    let mut answer = Map::new();
    answer.insert("msg".into(), message.into());
    let waited = match (verb, wait) {
        (Verb::Start, Some(wait)) => Some(until_live(bridge, robot, wait).await),
        _ => None,
    };
    let view = bridge.fleet.settled_view(&robot.name).await;
    let online = view.online == Some(true);
    answer.insert("online".into(), online.into());
    if !online {
        let note = match view.online {
            Some(_) => "the robot is offline",
            None => "the broker knows of no such robot: it has never announced itself",
        };
        let effect = match verb {
            Verb::Start => format!(
                "the start is good for {} s, should it come back by then",
                bridge.start_expiry.as_secs()
            ),
            Verb::Stop => "it gets the stop when it comes back".to_owned(),
        };
        answer.insert("note".into(), format!("{note}; {effect}").into());
    }
    if let Some(outcome) = waited {
        answer.insert("live".into(), outcome.is_ok().into());
        let state = view.state.as_ref().map(|state| state.state.as_str());
        answer.insert("state".into(), state.into());
        if let Err(reason) = outcome {
            answer.insert("reason".into(), reason.into());
        }
    }
    Ok(answer)
}

/// Waits until frames reach the server; says why they do not where time is up.
async fn until_live(bridge: &Bridge, robot: &Robot, wait: Duration) -> Result<(), String> {
    let deadline = Instant::now() + wait;
    let mut watcher = bridge.fleet.watch(&robot.name);
    let mut closing = bridge.closing.subscribe();
    let live = async {
        tokio::select! {
            _ = watcher.receiver.wait_for(View::is_live) => true,
            _ = closing.wait_for(|closing| *closing) => false,
        }
    };
    match timeout_at(deadline, live).await {
        Ok(true) => Ok(()),
        Ok(false) => Err("the bridge is shutting down".into()),
        Err(_) => Err(why_not_live(bridge, robot)),
    }
}

fn why_not_live(bridge: &Bridge, robot: &Robot) -> String {
    if let Link::Down(reason) = bridge.fleet.link() {
        return format!("the MQTT broker is out of reach: {reason}");
    }
    let view = bridge.fleet.view(&robot.name);
    match (view.online, view.state) {
        (Some(false), _) => "the robot is offline".into(),
        (None, None) => "the robot has never announced itself".into(),
        (_, None) => "the robot does not tell its state".into(),
        (_, Some(state)) => {
            let detail = state
                .publish
                .as_ref()
                .and_then(|publish| publish.reason.clone())
                .or_else(|| state.last_error.clone())
                .map(|detail| format!(": {detail}"))
                .unwrap_or_default();
            let what = match state.state {
                StreamState::Live => return "the robot became live just now".into(),
                StreamState::Idle => "the robot has not opened its stream",
                StreamState::Starting => "the robot is still starting",
                StreamState::Backoff => "the robot cannot reach the media server",
                StreamState::Refused => "the media server refuses the robot",
                StreamState::Error => "the robot cannot deliver",
            };
            format!("{what}{detail}")
        }
    }
}

impl Verb {
    fn parse(text: &str) -> Result<Self, Failure> {
        match text {
            "start" => Ok(Verb::Start),
            "stop" => Ok(Verb::Stop),
            _ => Err(Failure::new(
                StatusCode::NOT_FOUND,
                "there is nothing at this path: a stream takes start and stop",
            )),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Verb::Start => "start",
            Verb::Stop => "stop",
        }
    }
}

/// The robot that the path names, which the user may use.
struct Chosen(Robot);

#[derive(Deserialize)]
struct RobotInPath {
    robot: String,
}

impl FromRequestParts<Arc<Bridge>> for Chosen {
    type Rejection = Failure;

    async fn from_request_parts(
        parts: &mut Parts,
        bridge: &Arc<Bridge>,
    ) -> Result<Self, Self::Rejection> {
        let Path(RobotInPath { robot: name }) = Path::from_request_parts(parts, bridge)
            .await
            .map_err(|_| Failure::bad_request("the path does not name a robot"))?;
        if let Some(user) = parts.extensions.get::<Arc<User>>() {
            check_right(user, &name)?;
        }
        let robot = bridge.fleet.directory.robot(&name);
        robot.map(Chosen).ok_or_else(|| {
            Failure::new(StatusCode::NOT_FOUND, format!("there is no robot {name:?}"))
        })
    }
}

fn check_right(user: &User, robot: &str) -> Result<(), Failure> {
    if user.may_use(robot) {
        Ok(())
    } else {
        let reason = format!("user {:?} has no right to robot {robot:?}", user.name);
        Err(Failure::new(StatusCode::FORBIDDEN, reason))
    }
}

/// Lets in who has a credential, and nobody whom a foreign page sends.
async fn authenticate(
    State(bridge): State<Arc<Bridge>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    // A browser adds its user's credentials to requests that other sites make it send.
    const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    let foreign = |site: &HeaderValue| site == "cross-site" || site == "same-site";
    if !request.method().is_safe() && request.headers().get(SITE).is_some_and(foreign) {
        return Failure::new(
            StatusCode::FORBIDDEN,
            "requests from other sites are refused",
        )
        .into_response();
    }
    if bridge.auth.is_open() && !names_this_host(request.headers().get(HOST)) {
        let reason = "without any [[user]] only requests to localhost or 127.0.0.1 are answered";
        return Failure::new(StatusCode::FORBIDDEN, reason).into_response();
    }
    match bridge
        .auth
        .check(request.headers().get(AUTHORIZATION), peer.ip())
        .await
    {
        Ok(user) => {
            request.extensions_mut().insert(user);
            next.run(request).await
        }
        Err(denial) => {
            if denial != Denial::Missing {
                warn!(peer = %peer.ip(), "refused: {denial:?}");
            }
            refuse(denial)
        }
    }
}

/// A page whose name was made to resolve to this host sends its own name here.
fn names_this_host(host: Option<&HeaderValue>) -> bool {
    let Some(host) = host else { return true };
    let Ok(authority) = Authority::try_from(host.as_bytes()) else {
        return false;
    };
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

fn refuse(denial: Denial) -> Response {
    let (status, reason) = match denial {
        Denial::Missing => (
            StatusCode::UNAUTHORIZED,
            "credentials are needed: send Basic or Bearer authorization",
        ),
        Denial::Wrong => (StatusCode::UNAUTHORIZED, "the credentials are wrong"),
        Denial::Limited(_) => (
            StatusCode::TOO_MANY_REQUESTS,
            "too many wrong credentials came from this address: wait",
        ),
    };
    let mut response = Failure::new(status, reason).into_response();
    let headers = response.headers_mut();
    if let Denial::Limited(wait) = denial {
        let seconds = wait.as_secs_f64().ceil() as u64;
        headers.insert(RETRY_AFTER, seconds.into());
    } else {
        for challenge in [
            r#"Basic realm="droidrelay", charset="UTF-8""#,
            r#"Bearer realm="droidrelay""#,
        ] {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
    }
    response
}

async fn harden(mut response: Response) -> Response {
    const OPTIONS: HeaderName = HeaderName::from_static("x-content-type-options");
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// An answer that is not a success: `{"error": reason}`.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    reason: String,
}

impl Failure {
    fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Failure {
            status,
            reason: reason.into(),
        }
    }

    fn bad_request(reason: impl Into<String>) -> Self {
        Failure::new(StatusCode::BAD_REQUEST, reason)
    }

    fn unavailable(reason: impl Into<String>) -> Self {
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.reason }))).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use base64::{engine::general_purpose::STANDARD, Engine};
    use droidrelay_wire::session::{Event, Message};
    use http_body_util::BodyExt;
    use std::net::TcpListener;
    use tower::ServiceExt;

    /// A bridge whose broker takes connections and never answers.
    struct Bench {
        bridge: Arc<Bridge>,
        _broker: TcpListener,
    }

    impl Bench {
        fn new() -> Self {
            let broker = TcpListener::bind("127.0.0.1:0").unwrap();
            let sha = |secret: &str| crate::auth::Hash::sha256(&secret.into());
            let text = format!(
                r#"
                [mqtt]
                broker = "mqtt://{}"
                ack-timeout = 1
                [robots]
                topic = "robots/{{robot}}/stream"
                default = "r1"
                [watch]
                rtsp = "rtsp://h:8554/{{path}}"
                [failures]
                burst = 2
                [[user]]
                name = "viewer"
                role = "viewer"
                robots = ["r1"]
                password = "{}"
                [[user]]
                name = "admin"
                role = "admin"
                token = "{}"
                "#,
                broker.local_addr().unwrap(),
                sha("hunter2"),
                sha("t0ken"),
            );
            let config = Config::parse(&text, "bridge.toml".as_ref(), |_| None).unwrap();
            Bench {
                bridge: Bridge::start(config, &Handle::current()).unwrap(),
                _broker: broker,
            }
        }

        async fn send(&self, request: Request) -> (StatusCode, Value, Response<()>) {
            let mut request = request;
            let peer = SocketAddr::from(([127, 0, 0, 1], 40000));
            request.extensions_mut().insert(ConnectInfo(peer));
            let answer = app(self.bridge.clone()).oneshot(request).await.unwrap();
            let (parts, body) = answer.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
            (parts.status, json, Response::from_parts(parts, ()))
        }

        async fn as_viewer(&self, method: &str, path: &str) -> (StatusCode, Value) {
            let (status, json, _) = self.send(viewer(method, path)).await;
            (status, json)
        }

        fn say(&self, topic: &str, payload: &str) {
            self.bridge.fleet.apply(Event::Message(Message {
                topic: topic.into(),
                payload: payload.into(),
                retained: true,
                correlation: None,
            }));
        }
    }

    fn request(method: &str, path: &str, authorization: Option<&str>) -> Request {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.body(Body::empty()).unwrap()
    }

    fn viewer(method: &str, path: &str) -> Request {
        let basic = format!("Basic {}", STANDARD.encode("viewer:hunter2"));
        request(method, path, Some(&basic))
    }

    #[tokio::test]
    async fn only_the_greeting_and_the_health_are_open() {
        let bench = Bench::new();
        let (status, json, head) = bench.send(request("GET", "/", None)).await;
        assert_eq!(status, 200);
        assert_eq!(json, json!({ "msg": "Media bridge service running!" }));
        assert!(!head.headers().contains_key("access-control-allow-origin"));
        let (status, _, _) = bench.send(request("GET", "/healthz", None)).await;
        assert_eq!(status, 503, "no broker yet");
        for (method, path) in [
            ("POST", "/stream/start"),
            ("POST", "/stream/stop"),
            ("POST", "/robots/r1/stream/start"),
            ("GET", "/robots"),
            ("GET", "/robots/r1"),
        ] {
            let (status, json, head) = bench.send(request(method, path, None)).await;
            assert_eq!(status, 401, "{path}");
            assert!(json["error"].is_string());
            assert_eq!(head.headers().get_all(WWW_AUTHENTICATE).iter().count(), 2);
        }
    }

    #[tokio::test]
    async fn wrong_credentials_are_refused_and_then_limited() {
        let bench = Bench::new();
        let wrong = || request("GET", "/robots", Some("Bearer hunter2"));
        for _ in 0..2 {
            assert_eq!(bench.send(wrong()).await.0, 401);
        }
        let (status, json, head) = bench.send(viewer("GET", "/robots")).await;
        assert_eq!(status, 429, "{json}");
        let wait: u64 = head.headers()[RETRY_AFTER]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=30).contains(&wait), "{wait}");
    }

    #[tokio::test]
    async fn a_viewer_has_the_robots_of_his_list_and_an_admin_all() {
        let bench = Bench::new();
        bench.bridge.fleet.apply(Event::Up);
        for robot in ["r1", "r2"] {
            bench.say(&format!("robots/{robot}/stream/availability"), "online");
        }
        assert_eq!(bench.as_viewer("GET", "/robots/r2").await.0, 403);
        assert_eq!(
            bench.as_viewer("POST", "/robots/r2/stream/stop").await.0,
            403
        );
        let (_, json) = bench.as_viewer("GET", "/robots").await;
        assert_eq!(json["robots"].as_array().unwrap().len(), 1);
        let all = request("GET", "/robots", Some("Bearer t0ken"));
        assert_eq!(bench.send(all).await.1["robots"][1]["robot"], "r2");
    }

    #[tokio::test]
    async fn a_robot_is_described_by_what_it_last_said() {
        let bench = Bench::new();
        let (status, json) = bench.as_viewer("GET", "/robots/r1").await;
        assert_eq!(status, 200);
        assert_eq!(
            (&json["online"], &json["broker"]["connected"]),
            (&Value::Null, &json!(false))
        );
        bench.bridge.fleet.apply(Event::Up);
        bench.say("robots/r1/stream/availability", "online");
        bench.say(
            "robots/r1/stream/state",
            r#"{"state":"live","viewers":["a"],"new":1}"#,
        );
        let (_, json) = bench.as_viewer("GET", "/robots/r1").await;
        assert_eq!(json["online"], true);
        assert_eq!(
            (&json["state"]["state"], &json["state"]["new"]),
            (&json!("live"), &json!(1))
        );
        assert_eq!(json["watch"], json!({ "rtsp": "rtsp://h:8554/robots/r1" }));
    }

    #[tokio::test]
    async fn a_mistake_in_the_request_is_told() {
        let bench = Bench::new();
        for (method, path, expected, reason) in [
            ("POST", "/stream/start?lease=x", 400, "lease"),
            ("POST", "/stream/start?lease=-1", 400, "-1"),
            ("POST", "/stream/start?lease=nan", 400, "NaN"),
            ("POST", "/stream/start?wait=61", 400, "60"),
            ("POST", "/stream/start?leas=3", 400, "leas"),
            ("POST", "/stream/start?viewer=", 400, "viewer"),
            ("POST", "/stream/pause", 404, "start and stop"),
            ("GET", "/stream/start", 405, "method"),
            ("GET", "/nothing", 404, "path"),
        ] {
            let (status, json) = bench.as_viewer(method, path).await;
            assert_eq!(status, expected, "{path}: {json}");
            let error = json["error"].as_str().unwrap();
            assert!(error.contains(reason), "{error} names {reason}");
        }
    }

    #[tokio::test]
    async fn large_bodies_and_requests_from_other_sites_are_refused() {
        let bench = Bench::new();
        let mut large = viewer("POST", "/stream/start");
        large
            .headers_mut()
            .insert("content-length", (MAX_BODY + 1).into());
        assert_eq!(bench.send(large).await.0, 413);
        let mut foreign = viewer("POST", "/stream/start");
        foreign
            .headers_mut()
            .insert("sec-fetch-site", HeaderValue::from_static("cross-site"));
        assert_eq!(bench.send(foreign).await.0, 403);
    }

    #[test]
    fn without_users_only_this_host_is_served_under_its_own_name() {
        for (host, own) in [
            ("localhost:8080", true),
            ("127.0.0.1", true),
            ("[::1]:8080", true),
            ("evil.example", false),
            ("localhost.evil.example:8080", false),
            ("192.0.2.1", false),
            ("", false),
        ] {
            let host = HeaderValue::from_static(host);
            assert_eq!(names_this_host(Some(&host)), own, "{host:?}");
        }
    }

    #[tokio::test]
    async fn a_broker_that_never_answers_costs_the_time_that_is_allowed() {
        let bench = Bench::new();
        let started = Instant::now();
        let (status, json) = bench.as_viewer("POST", "/stream/start").await;
        assert_eq!(status, 503, "{json}");
        assert!(json["error"].as_str().unwrap().contains("broker"), "{json}");
        assert!(started.elapsed() < Duration::from_secs(3));
    }
}
