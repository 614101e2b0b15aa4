//! The HTTP surface.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    extract::{ConnectInfo, Path, Request, State},
    http::{
        header::{AUTHORIZATION, CACHE_CONTROL, HOST, RETRY_AFTER, WWW_AUTHENTICATE},
        uri::Authority,
        HeaderName, HeaderValue, StatusCode,
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put, MethodRouter},
    Extension, Json, Router,
};
use droidrelay_wire::{
    session::{Properties, Session},
    Command,
};
use serde_json::{json, Map, Value};
use tokio::{
    runtime::Handle,
    sync::watch,
    task::JoinSet,
    time::{timeout_at, Instant},
};
use tower_http::limit::RequestBodyLimitLayer;
use tracing::warn;

use crate::{
    auth::{Auth, Denial, Right, User},
    commands,
    config::{Config, Watch},
    failure::Failure,
    fleet::{Fleet, Link, View},
    poll,
    robots::Robot,
};

/// Nothing that is sent here has a body worth reading.
const MAX_BODY: usize = 16 * 1024;

/// What the requests share.
pub struct Bridge {
    pub(crate) auth: Auth,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) session: Session,
    watch: Watch,
    pub(crate) start_expiry: Duration,
    ack_timeout: Duration,
    pub(crate) closing: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
}

impl Bridge {
    /// Starts the MQTT session on `runtime`; does not wait for the broker.
    pub fn start(config: Config, runtime: &Handle) -> Result<Arc<Self>, String> {
        let fleet = Fleet::new(config.directory, config.mqtt.client_id.clone());
        let fleet = Arc::new(fleet);
        let listener = fleet.clone();
        let auth = Auth::new(config.users, config.failures)?;
        let bridge = Arc::new(Bridge {
            auth,
            session: Session::spawn(runtime, config.mqtt, move |event| listener.apply(event)),
            fleet,
            watch: config.watch,
            start_expiry: config.start_expiry,
            ack_timeout: config.ack_timeout,
            closing: watch::Sender::new(false),
            tasks: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn_on(poll::keep(bridge.clone()), runtime);
        *bridge.tasks.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
        Ok(bridge)
    }

    /// Makes requests that wait answer at once.
    pub fn begin_close(&self) {
        self.closing.send_replace(true);
    }

    /// Leaves the broker cleanly where no request is left.
    pub async fn close(self: Arc<Self>) {
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        if let Some(bridge) = Arc::into_inner(self) {
            bridge.session.stop(Vec::new()).await;
        }
    }

    /// The robot of this name, where the user may do this with it.
    pub(crate) fn robot(&self, user: &User, right: Right, name: &str) -> Result<Robot, Failure> {
        user.check(right, name)?;
        let robot = self.fleet.directory.robot(name);
        robot.ok_or_else(|| Failure::not_found(format!("there is no robot {name:?}")))
    }

    /// Sends a command and waits for the broker's acknowledgement; 503 where it does not come.
    pub(crate) async fn command(&self, robot: &Robot, command: &Command) -> Result<(), Failure> {
        let properties = Properties {
            expiry: matches!(command, Command::Start { .. }).then_some(self.start_expiry),
            ..Properties::default()
        };
        self.publish(&robot.topic, command.to_payload(), properties)
            .await
    }

    /// As [`Bridge::command`], whatever and wherever.
    pub(crate) async fn publish(
        &self,
        topic: &str,
        payload: impl Into<Vec<u8>>,
        properties: Properties,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + self.ack_timeout;
        self.check_link(deadline).await?;
        let answer = self.session.publish(topic, payload, properties);
        match timeout_at(deadline, answer).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(err)) => Err(Failure::unavailable(err.to_string())),
            Err(_) => Err(Failure::unavailable(format!(
                "the MQTT broker has not acknowledged within {} s: the command may still arrive",
                self.ack_timeout.as_secs()
            ))),
        }
    }

    /// 503 where the broker is out of reach; waits for the first try to connect.
    pub(crate) async fn check_link(&self, deadline: Instant) -> Result<(), Failure> {
        match self.fleet.link_decided(deadline).await {
            Link::Up(_) => Ok(()),
            Link::Connecting => Err(Failure::unavailable(
                "the MQTT broker is out of reach: it has not answered yet",
            )),
            Link::Down(reason) => Err(Failure::unavailable(format!(
                "the MQTT broker is out of reach: {reason}"
            ))),
        }
    }

    /// How long the broker is waited for.
    pub(crate) fn broker_deadline(&self) -> Instant {
        Instant::now() + self.ack_timeout
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

type Routes = Vec<(&'static str, MethodRouter<Arc<Bridge>>)>;

/// What needs a credential.
fn routes() -> Routes {
    vec![
        ("/stream/start", post(commands::start)),
        ("/stream/stop", post(commands::stop)),
        ("/robots", get(robots)),
        ("/robots/{robot}", get(robot)),
        ("/robots/{robot}/stream", get(poll::poll)),
        ("/robots/{robot}/stream/start", post(commands::start_robot)),
        ("/robots/{robot}/stream/stop", post(commands::stop_robot)),
        (
            "/robots/{robot}/stream/keyframe",
            post(commands::keyframe_robot),
        ),
        ("/robots/{robot}/stream/state", put(poll::report)),
    ]
}

/// What needs none.
fn open_routes() -> Routes {
    vec![("/", get(index)), ("/healthz", get(health))]
}

/// The router; to be served with the peer's address as [`ConnectInfo`].
pub fn app(bridge: Arc<Bridge>) -> Router {
    let router = |routes: Routes| {
        let add = |router: Router<Arc<Bridge>>, (path, methods)| router.route(path, methods);
        routes.into_iter().fold(Router::new(), add)
    };
    let behind_credential =
        router(routes()).route_layer(middleware::from_fn_with_state(bridge.clone(), authenticate));
    router(open_routes())
        .merge(behind_credential)
        .fallback(async || Failure::not_found("there is nothing at this path"))
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
        .filter(|name| user.may(Right::Look, name))
        .filter_map(|name| bridge.fleet.directory.robot(name))
        .map(|robot| bridge.describe(&robot))
        .collect();
    Json(json!({ "robots": robots, "broker": bridge.broker() }))
}

async fn robot(
    State(bridge): State<Arc<Bridge>>,
    Extension(user): Extension<Arc<User>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Failure> {
    let robot = bridge.robot(&user, Right::Look, &name)?;
    // Right after the connection the retained topics are still on their way.
    bridge.fleet.settled_view(&robot.name).await;
    let mut answer = bridge.describe(&robot);
    answer["broker"] = bridge.broker();
    Ok(Json(answer))
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
            ("POST", "/stream/pause", 404, "path"),
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
