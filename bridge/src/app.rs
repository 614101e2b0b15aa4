// SPDX-License-Identifier: MPL-2.0

//! The HTTP surface.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    extract::{ConnectInfo, Path, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, RETRY_AFTER, WWW_AUTHENTICATE},
        uri::Authority,
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, post, put},
};
use droidrelay_wire::{
    Command,
    mqtt::session::{Properties, Session},
};
use serde_json::{Value, json};
use tokio::{
    runtime::Handle,
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tower_http::{limit::RequestBodyLimitLayer, timeout::RequestBodyTimeoutLayer};
use tracing::warn;

use crate::{
    auth::{Auth, Denial, Right, User},
    commands,
    config::{Config, Network},
    events,
    failure::Failure,
    fleet::{Fleet, Link},
    mediamtx::{self, Demands},
    metrics::{self, Metrics},
    page, poll,
    robots::Robot,
    share::{self, Shares},
    views::Views,
    webhook::Alarms,
};

/// No body that is sent here is longer.
const MAX_BODY: usize = 16 * 1024;
/// For the next piece of a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What the requests share.
pub struct Bridge {
    pub(crate) auth: Auth,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) session: Session,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) views: Views,
    pub(crate) demands: Demands,
    pub(crate) mediamtx: Option<mediamtx::Settings>,
    proxies: Vec<Network>,
    pub(crate) start_expiry: Duration,
    ack_timeout: Duration,
    pub(crate) closing: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
}

impl Bridge {
    /// Starts the MQTT session on `runtime`; does not wait for the broker.
    pub fn start(config: Config, runtime: &Handle) -> Result<Arc<Self>, String> {
        let id = config.mqtt.client_id.clone();
        let mut tasks = JoinSet::new();
        let metrics = Arc::new(Metrics::default());
        let mut fleet = Fleet::new(config.directory, config.watch, id);
        fleet.shares = Shares::new(config.share_key);
        let alarms = Alarms::start(config.webhooks, &metrics, &mut tasks, runtime);
        fleet.alarms = Some(alarms);
        let fleet = Arc::new(fleet);
        let listener = fleet.clone();
        let auth = Auth::new(config.users, config.failures)?;
        let bridge = Arc::new(Bridge {
            auth,
            session: Session::spawn(runtime, config.mqtt, move |event| listener.apply(event)),
            fleet,
            metrics,
            views: Views::default(),
            demands: Demands::default(),
            mediamtx: config.mediamtx,
            proxies: config.proxies,
            start_expiry: config.start_expiry,
            ack_timeout: config.ack_timeout,
            closing: watch::Sender::new(false),
            tasks: Mutex::default(),
        });
        tasks.spawn_on(poll::keep(bridge.clone()), runtime);
        *bridge.tasks.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
        Ok(bridge)
    }

    /// Makes requests that wait answer at once.
    pub fn begin_close(&self) {
        self.closing.send_replace(true);
    }

    /// True from [`Bridge::begin_close`] on.
    pub fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// Nobody needs a credential.
    pub fn is_open(&self) -> bool {
        self.auth.is_open()
    }

    /// Knows these users from now on.
    pub fn replace_users(&self, users: Vec<User>) {
        self.auth.replace(users);
    }

    /// Leaves the broker cleanly where no request is left.
    pub async fn close(self: Arc<Self>) {
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        self.views.end_all(self.fleet.now().wall);
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
        let published = self
            .publish(&robot.topic, command.to_payload(), properties)
            .await;
        let what = match command {
            Command::Start { .. } => "start",
            Command::Stop { .. } => "stop",
            Command::Keyframe => "keyframe",
        };
        self.metrics.command(what, published.is_ok());
        if published.is_ok() {
            self.fleet.sent_command();
        }
        published
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

    /// Runs something beside the requests, until the bridge ends.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // What has ended needs no owner.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// How long a demand that the media server's hooks tell holds.
    pub(crate) fn demand_lease(&self) -> Duration {
        self.mediamtx
            .as_ref()
            .map_or(mediamtx::LEASE, |settings| settings.lease)
    }

    /// How long the broker is waited for.
    pub(crate) fn broker_deadline(&self) -> Instant {
        Instant::now() + self.ack_timeout
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
        (
            "/robots/{robot}/share",
            post(share::share).delete(share::revoke_all),
        ),
        ("/robots/{robot}/share/{id}", delete(share::revoke)),
        ("/mediamtx/auth", post(mediamtx::auth)),
        ("/mediamtx/demand", post(mediamtx::told)),
        ("/events", get(events::events)),
        ("/metrics", get(metrics::metrics)),
    ]
}

/// What needs none.
fn open_routes() -> Routes {
    vec![
        ("/", get(index)),
        ("/healthz", get(health)),
        ("/openapi.json", get(openapi)),
    ]
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
        .layer(RequestBodyTimeoutLayer::new(BODY_TIMEOUT))
        .layer(middleware::map_response(harden))
        .layer(middleware::from_fn_with_state(
            bridge.clone(),
            metrics::count,
        ))
        .with_state(bridge)
}

/// A greeting for apps; for people, the page.
async fn index(State(bridge): State<Arc<Bridge>>, headers: HeaderMap) -> Response {
    if page::is_wanted(&headers) {
        return page::answer(bridge.fleet.watch_templates());
    }
    Json(json!({ "msg": "Media bridge service running!" })).into_response()
}

/// Every endpoint, in OpenAPI's words.
async fn openapi() -> Response {
    const DOCUMENT: &str = include_str!("../openapi.json");
    ([(CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
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
        .map(|robot| bridge.fleet.describe(&robot))
        .collect();
    Json(json!({ "robots": robots, "broker": bridge.fleet.broker() }))
}

async fn robot(
    State(bridge): State<Arc<Bridge>>,
    Extension(user): Extension<Arc<User>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Failure> {
    let robot = bridge.robot(&user, Right::Look, &name)?;
    // Right after the connection the retained topics are still on their way.
    bridge.fleet.settled_view(&robot.name).await;
    let mut answer = bridge.fleet.describe(&robot);
    answer["broker"] = bridge.fleet.broker();
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
    let peer = client(&bridge.proxies, peer.ip(), request.headers());
    match bridge
        .auth
        .check(request.headers().get(AUTHORIZATION), peer)
        .await
    {
        Ok(user) => {
            request.extensions_mut().insert(user);
            next.run(request).await
        }
        Err(denial) => {
            bridge.metrics.refused(denial);
            if denial != Denial::Missing {
                warn!(%peer, "refused: {denial:?}");
            }
            refuse(denial, is_of_a_script(request.headers()))
        }
    }
}

/// Who asks: the peer, or whom the last of the trusted proxies says that it speaks for.
fn client(proxies: &[Network], peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");
    let is_trusted = |address: IpAddr| proxies.iter().any(|network| network.contains(address));
    let mut client = peer;
    let values = headers.get_all(FORWARDED).iter().rev();
    for hop in values.flat_map(|value| value.to_str().unwrap_or_default().rsplit(',')) {
        if !is_trusted(client) {
            break;
        }
        match hop.trim().parse() {
            Ok(address) => client = address,
            Err(_) => break,
        }
    }
    client
}

/// Asked by a page's script, which has its own way to ask for a password.
fn is_of_a_script(headers: &HeaderMap) -> bool {
    const DESTINATION: HeaderName = HeaderName::from_static("sec-fetch-dest");
    headers
        .get(DESTINATION)
        .is_some_and(|destination| destination == "empty")
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

pub(crate) fn refuse(denial: Denial, is_of_a_script: bool) -> Response {
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
        let bearer = HeaderValue::from_static(r#"Bearer realm="droidrelay""#);
        headers.append(WWW_AUTHENTICATE, bearer);
        // A browser would ask its user, over the page.
        if !is_of_a_script {
            let basic = HeaderValue::from_static(r#"Basic realm="droidrelay", charset="UTF-8""#);
            headers.append(WWW_AUTHENTICATE, basic);
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
    use base64::{Engine, engine::general_purpose::STANDARD};
    use droidrelay_wire::mqtt::session::{Event, Message};
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
    async fn the_openapi_document_tells_every_endpoint_and_no_other() {
        let document: Value = serde_json::from_str(include_str!("../openapi.json")).unwrap();
        let told = document["paths"].as_object().unwrap();
        let served: Vec<_> = routes().into_iter().chain(open_routes()).collect();
        let paths: Vec<_> = served.iter().map(|(path, _)| *path).collect();
        let mut unknown = told.keys().filter(|path| !paths.contains(&path.as_str()));
        assert_eq!(unknown.next(), None, "is told and not served");
        let bench = Bench::new();
        for path in paths {
            let methods = told
                .get(path)
                .unwrap_or_else(|| panic!("{path} is not told"));
            let mut told: Vec<_> = methods.as_object().unwrap().keys().cloned().collect();
            // A method that nobody has shows which ones there are.
            let sample = path.replace("{robot}", "r1").replace("{id}", "0");
            let (status, _, head) = bench.send(request("BREW", &sample, None)).await;
            assert_eq!(status, 405, "{path}");
            let allowed = head.headers()["allow"].to_str().unwrap().to_lowercase();
            // A GET answers HEAD too, which OpenAPI need not say.
            let mut allowed: Vec<_> = allowed.split(',').filter(|one| *one != "head").collect();
            told.sort_unstable();
            allowed.sort_unstable();
            assert_eq!(told, allowed, "{path}");
        }
        let (status, served, _) = bench.send(request("GET", "/openapi.json", None)).await;
        assert_eq!((status, served), (StatusCode::OK, document));
    }

    #[test]
    fn a_proxy_that_is_trusted_says_who_asks_and_nobody_else_does() {
        let proxies = ["127.0.0.1", "10.0.0.0/8"].map(|text| text.parse().unwrap());
        let asked = |peer: &str, forwarded: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", HeaderValue::from_static(value));
            }
            client(&proxies, peer.parse().unwrap(), &headers).to_string()
        };
        assert_eq!(asked("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(asked("127.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(
            asked("127.0.0.1", &["6.6.6.6, 198.51.100.7, 10.1.1.1"]),
            "198.51.100.7"
        );
        assert_eq!(
            asked("127.0.0.1", &["6.6.6.6", "198.51.100.7"]),
            "198.51.100.7"
        );
        assert_eq!(asked("127.0.0.1", &["x, unknown"]), "127.0.0.1");
        assert_eq!(asked("127.0.0.1", &[]), "127.0.0.1");
    }

    #[tokio::test]
    async fn a_browser_gets_the_page_and_its_script_no_password_dialogue() {
        let bench = Bench::new();
        let mut browser = request("GET", "/", None);
        let accept = HeaderValue::from_static("text/html,application/xhtml+xml,*/*;q=0.8");
        browser.headers_mut().insert("accept", accept);
        let (status, json, head) = bench.send(browser).await;
        assert_eq!((status, json), (StatusCode::OK, Value::Null));
        assert!(
            head.headers()[CONTENT_TYPE]
                .to_str()
                .unwrap()
                .starts_with("text/html")
        );
        let mut script = request("GET", "/robots", None);
        let destination = HeaderValue::from_static("empty");
        script.headers_mut().insert("sec-fetch-dest", destination);
        let (_, _, head) = bench.send(script).await;
        let challenges = head.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges: Vec<_> = challenges.map(|value| value.to_str().unwrap()).collect();
        assert_eq!(challenges, [r#"Bearer realm="droidrelay""#]);
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
