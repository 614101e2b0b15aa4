// SPDX-License-Identifier: MPL-2.0

//! The router, before a broker that takes connections and never answers.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use super::*;
use axum::{
    body::Body,
    extract::{ConnectInfo, Request},
    http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use droidrelay_wire::{
    Secret,
    mqtt::session::{Capabilities, Event, Message},
    words::enroll::Bundle,
};
use http_body_util::BodyExt;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Handle,
    time::Instant,
};
use tower::ServiceExt;

use crate::{Config, auth::Hash, enroll::invite};

/// A bridge whose broker takes connections and never answers.
struct Bench {
    bridge: Arc<Bridge>,
    _broker: TcpListener,
    /// Of the configuration.
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self::with("")
    }

    fn with(more: &str) -> Self {
        Self::with_share("", more)
    }

    /// `key` signs links; without one there are none.
    fn with_share(key: &str, more: &str) -> Self {
        let broker = TcpListener::bind("127.0.0.1:0").unwrap();
        let sha = |secret: &str| Hash::sha256(&secret.into());
        let share = match key {
            "" => "",
            _ => "[share]\nkey-file = \"share.key\"",
        };
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
            {share}
            {more}
            "#,
            broker.local_addr().unwrap(),
            sha("hunter2"),
            sha("t0ken"),
        );
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("enroll")).unwrap();
        fs::write(folder.path().join("share.key"), key).unwrap();
        let config = Config::parse(&text, &folder.path().join("bridge.toml"), |_| None).unwrap();
        Bench {
            folder,
            bridge: Bridge::start(config, &Handle::current()).unwrap(),
            _broker: broker,
        }
    }

    async fn send(&self, request: Request) -> (StatusCode, Value, Response<()>) {
        let mut request = request;
        let peer = SocketAddr::from(([192, 0, 2, 1], 40000));
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
            may_be_old: false,
            expiry: None,
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
    bench.bridge.fleet.apply(Event::Up(Capabilities {
        retain: false,
        ..Capabilities::ALL
    }));
    let (status, json, _) = bench.send(request("GET", "/healthz", None)).await;
    assert_eq!(status, 503, "robots cannot be served");
    let said = json["status"].as_str().unwrap();
    assert!(said.contains("allow retained messages"), "{said}");
    bench.bridge.fleet.apply(Event::Up(Capabilities::ALL));
    let (status, _, _) = bench.send(request("GET", "/healthz", None)).await;
    assert_eq!(status, 200);
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
async fn a_robot_gets_its_bundle_once_in_time_and_guesses_are_limited() {
    let bench = Bench::new();
    let folder = bench.folder.path().join("enroll");
    let text = r#"{"robot":"r1","page":"https://h:8443/","broker":"mqtts://h:8883",
        "rtmp_user":"r1","rtmp_password":"hunter2","cameras":[{"name":"r1",
        "topic":"robots/r1/stream","location":"rtmps://h:1936/robots/r1",
        "mqtt_user":"r1","mqtt_password":"hunter3"}]}"#;
    let bundle = Bundle::parse(text.as_bytes()).unwrap();
    let now = bench.bridge.fleet.now().wall.as_secs();
    let ask = async |method: &str, token: &Secret| {
        let bearer = format!("Bearer {}", token.expose());
        bench.send(request(method, "/enroll", Some(&bearer))).await
    };
    let token = invite(&folder, &bundle, now).unwrap();
    let (status, given, head) = ask("POST", &token).await;
    assert_eq!(
        (status, &given["rtmp_password"]),
        (StatusCode::OK, &json!("hunter2"))
    );
    assert_eq!(head.headers()[CACHE_CONTROL], "no-store");
    let (status, json, _) = ask("POST", &token).await;
    assert_eq!(status, StatusCode::GONE);
    let reason = json["error"].as_str().unwrap();
    assert!(
        reason.contains("used already") && reason.contains("robot enroll"),
        "{reason}"
    );
    // Whether it is there is told to who has the token.
    let seen = |online: bool, state: Value| json!({"robots":[{"name":"r1","online":online,"state":state}]});
    assert_eq!(ask("GET", &token).await.1, seen(false, Value::Null));
    bench.bridge.fleet.apply(Event::Up(Capabilities::ALL));
    bench.say("robots/r1/stream/availability", "online");
    bench.say("robots/r1/stream/state", r#"{"state":"idle"}"#);
    assert_eq!(ask("GET", &token).await.1, seen(true, json!("idle")));

    let late = invite(&folder, &bundle, now - 15 * 60).unwrap();
    let (status, json, _) = ask("POST", &late).await;
    assert_eq!(status, StatusCode::GONE);
    let reason = json["error"].as_str().unwrap();
    assert!(reason.contains("valid until"), "{reason}");

    let good = invite(&folder, &bundle, now).unwrap();
    let without = bench.send(request("POST", "/enroll", None)).await.0;
    assert_eq!(without, StatusCode::UNAUTHORIZED);
    for _ in 0..2 {
        assert_eq!(
            ask("POST", &"c0ffee".into()).await.0,
            StatusCode::UNAUTHORIZED
        );
    }
    let (status, _, head) = ask("POST", &good).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(head.headers().contains_key(RETRY_AFTER));
}

#[tokio::test]
async fn whep_is_handed_on_for_viewers_with_their_address_and_a_place_under_the_bridge() {
    // What comes to the media server, and what it says to that.
    let media = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bench = Bench::with(&format!(
        "[mediamtx]\nwebrtc = \"http://{}\"",
        media.local_addr().unwrap()
    ));
    let (_, described) = bench.as_viewer("GET", "/robots/r1").await;
    assert_eq!(described["whep"], "robots/r1/whep");
    let served = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in [
            "HTTP/1.1 201 Created\r\nContent-Type: application/sdp\r\nETag: *\r\n\
             Access-Control-Allow-Origin: *\r\nLocation: /robots/r1/whep/5e55-1\r\n\
             Content-Length: 6\r\n\r\nanswer",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ] {
            let (mut stream, _) = media.accept().await.unwrap();
            let mut text = Vec::new();
            let is_whole = |text: &[u8]| {
                let text = String::from_utf8_lossy(text);
                let parts = text.split_once("\r\n\r\n");
                parts.is_some_and(|(head, body)| {
                    body == "offer" || !head.contains("content-length: 5")
                })
            };
            while !is_whole(&text) {
                assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0);
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            asked.push(String::from_utf8(text).unwrap());
        }
        asked
    });
    let ask = async |method: &str, path: &str, body: &'static str| {
        let mut request = viewer(method, path);
        let sdp = HeaderValue::from_static("application/sdp");
        request.headers_mut().insert(CONTENT_TYPE, sdp);
        *request.body_mut() = Body::from(body);
        bench.send(request).await
    };
    assert_eq!(ask("POST", "/robots/r2/whep", "offer").await.0, 403);
    let nobody = bench.send(request("POST", "/robots/r1/whep", None)).await.0;
    assert_eq!(nobody, 401);
    let (status, _, head) = ask("POST", "/robots/r1/whep", "offer").await;
    assert_eq!(status, 201);
    assert_eq!(head.headers()["location"], "whep/5e55-1");
    assert_eq!(head.headers()[CONTENT_TYPE], "application/sdp");
    assert!(!head.headers().contains_key("access-control-allow-origin"));
    assert_eq!(ask("DELETE", "/robots/r1/whep/..%2Fx", "").await.0, 404);
    assert_eq!(ask("PATCH", "/robots/r1/whep/5e55-1", "offer").await.0, 204);
    assert_eq!(ask("DELETE", "/robots/r1/whep/5e55-1", "").await.0, 200);
    let asked = served.await.unwrap();
    for (text, begin) in asked.iter().zip([
        "POST /robots/r1/whep HTTP",
        "PATCH /robots/r1/whep/5e55-1 HTTP",
        "DELETE /robots/r1/whep/5e55-1 HTTP",
    ]) {
        assert!(text.starts_with(begin), "{text}");
        assert!(text.contains("x-forwarded-for: 192.0.2.1\r\n"), "{text}");
        assert!(text.contains("content-type: application/sdp\r\n"), "{text}");
    }
    // It is gone.
    assert_eq!(ask("POST", "/robots/r1/whep", "offer").await.0, 502);
    let without = Bench::new();
    let answer = without.as_viewer("POST", "/robots/r1/whep").await;
    assert_eq!(answer.0, 404, "{}", answer.1);
}

/// A media server that gives these answers, one to each connection; what it was asked.
async fn media(answers: Vec<Vec<u8>>) -> (SocketAddr, tokio::task::JoinHandle<Vec<String>>) {
    let media = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = media.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = media.accept().await.unwrap();
            let mut text = Vec::new();
            while !text.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0);
            }
            asked.push(String::from_utf8(text).unwrap());
            stream.write_all(&answer).await.unwrap();
        }
        asked
    });
    (address, served)
}

#[tokio::test]
async fn hls_is_handed_on_to_viewers_and_to_who_has_a_link_and_nothing_of_it_is_kept() {
    const PLAYLIST: &str = "application/vnd.apple.mpegurl";
    let playlist = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {PLAYLIST}\r\nSet-Cookie: session=s3cret\r\nContent-Length: 7\r\n\r\n#EXTM3U"
    );
    let longer_than_memory_has = 4 << 20;
    let piece = [
        format!("HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: {longer_than_memory_has}\r\n\r\n").into_bytes(),
        vec![7; longer_than_memory_has],
    ]
    .concat();
    let (address, served) = media(vec![
        b"HTTP/1.1 302 Found\r\nSet-Cookie: cookieCheck=1\r\nLocation: /robots/r1/index.m3u8?cookieCheck=1\r\nContent-Length: 0\r\n\r\n".to_vec(),
        playlist.clone().into(),
        b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/index.m3u8?x=1\r\nContent-Length: 0\r\n\r\n".to_vec(),
        piece,
        playlist.into(),
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ncut".to_vec(),
    ])
    .await;
    let key = "k".repeat(32);
    let bench = Bench::with_share(&key, &format!("[mediamtx]\nhls = \"http://{address}\""));
    bench.bridge.fleet.apply(Event::Up(Capabilities::ALL));
    bench.bridge.fleet.do_without_mark();
    let (_, described) = bench.as_viewer("GET", "/robots/r1").await;
    assert_eq!(described["hls"], "robots/r1/hls/index.m3u8");
    let ask = async |path: &str| bench.send(viewer("GET", path)).await;
    let anybody = async |path: &str| bench.send(request("GET", path, None)).await;

    // Who may not, and what is none of HLS, never reaches the media server.
    assert_eq!(ask("/robots/r2/hls/index.m3u8").await.0, 403);
    assert_eq!(anybody("/robots/r1/hls/index.m3u8").await.0, 401);
    for wrong in [
        "index.html",
        "..%2Findex.m3u8",
        "x%3F.mp4",
        "index.m3u8%00.ts",
    ] {
        let (status, ..) = ask(&format!("/robots/r1/hls/{wrong}")).await;
        assert_eq!(status, 404, "{wrong}");
    }
    assert_eq!(
        bench.as_viewer("POST", "/robots/r1/hls/index.m3u8").await.0,
        405
    );
    let mut foreign = viewer("GET", "/robots/r1/hls/index.m3u8");
    let site = HeaderValue::from_static("cross-site");
    foreign.headers_mut().insert("sec-fetch-site", site);
    assert_eq!(bench.send(foreign).await.0, 403);
    let forged = format!("/robots/r1/hls/index.m3u8?share={}", "A".repeat(90));
    assert_eq!(anybody(&forged).await.0, 401);

    let (status, _, head) = ask("/robots/r1/hls/index.m3u8").await;
    assert_eq!(
        (status, &head.headers()[CONTENT_TYPE]),
        (StatusCode::OK, &HeaderValue::from_static(PLAYLIST))
    );
    assert!(!head.headers().contains_key("set-cookie"));
    // Only to the same place.
    let (status, _, head) = ask("/robots/r1/hls/index.m3u8?a=b").await;
    assert_eq!(status, 302);
    assert!(!head.headers().contains_key("location"));
    let (status, _, head) = ask("/robots/r1/hls/seg1.mp4?session=5e55&_HLS_msn=3").await;
    assert_eq!(
        (status, &head.headers()["content-length"]),
        (StatusCode::OK, &HeaderValue::from(longer_than_memory_has))
    );

    // By a link, also when its time is over, where that has begun before.
    let shares = &bench.bridge.fleet.shares;
    let link = |robot: &str, seconds_ago: u64| {
        let made = bench.bridge.fleet.now().wall - Duration::from_secs(seconds_ago);
        let (_, token) = shares.make(robot, 60, made).unwrap();
        token.expose().to_owned()
    };
    let (fresh, old, other) = (link("r1", 0), link("r1", 90), link("r2", 0));
    assert_eq!(
        anybody(&format!("/robots/r1/hls/index.m3u8?share={fresh}"))
            .await
            .0,
        200
    );
    assert_eq!(
        anybody(&format!("/robots/r1/hls/index.m3u8?share={other}"))
            .await
            .0,
        403
    );
    assert_eq!(
        anybody(&format!("/robots/r1/hls/index.m3u8?share={old}"))
            .await
            .0,
        401
    );
    let (status, _, head) =
        anybody(&format!("/robots/r1/hls/seg2.mp4?share={old}&session=no")).await;
    assert_eq!(status, 401);
    assert!(
        !head.headers().contains_key(WWW_AUTHENTICATE),
        "no dialogue over a player"
    );
    assert_eq!(
        bench
            .send(viewer("HEAD", "/robots/r1/hls/index.m3u8"))
            .await
            .0,
        200
    );
    // A piece that the media server breaks off is not passed for a whole one.
    let mut cut = viewer("GET", "/robots/r1/hls/seg3.mp4");
    let peer = SocketAddr::from(([192, 0, 2, 1], 40000));
    cut.extensions_mut().insert(ConnectInfo(peer));
    let answer = app(bench.bridge.clone()).oneshot(cut).await.unwrap();
    assert!(answer.into_body().collect().await.is_err());

    let asked = served.await.unwrap();
    for (text, begin) in asked.iter().zip([
        "GET /robots/r1/index.m3u8 HTTP",
        "GET /robots/r1/index.m3u8?cookieCheck=1 HTTP",
        "GET /robots/r1/index.m3u8?a=b HTTP",
        "GET /robots/r1/seg1.mp4?session=5e55&_HLS_msn=3 HTTP",
        &format!("GET /robots/r1/index.m3u8?share={fresh} HTTP"),
        &format!("GET /robots/r1/seg2.mp4?share={old}&session=no HTTP"),
        "HEAD /robots/r1/index.m3u8 HTTP",
        "GET /robots/r1/seg3.mp4 HTTP",
    ]) {
        assert!(text.starts_with(begin), "{text}");
        assert!(text.contains("x-forwarded-for: 192.0.2.1\r\n"), "{text}");
        assert!(!text.contains("cookie:"), "{text}");
    }
}

#[tokio::test]
async fn a_viewer_has_the_robots_of_their_list_and_an_admin_all() {
    let bench = Bench::new();
    bench.bridge.fleet.apply(Event::Up(Capabilities::ALL));
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
    bench.bridge.fleet.apply(Event::Up(Capabilities::ALL));
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
async fn links_are_revoked_one_by_one_or_all_of_a_robot_by_who_may_share_it() {
    let bench = Bench::new();
    for (path, expected, reason) in [
        ("/robots/r1/share/0123456789abcdef", 409, "share.key-file"),
        ("/robots/r1/share", 409, "share.key-file"),
        ("/robots/r1/share/0123456789ABCDEF", 400, "16 hexadecimal"),
    ] {
        assert_eq!(bench.as_viewer("DELETE", path).await.0, 403, "{path}");
        let admin = request("DELETE", path, Some("Bearer t0ken"));
        let (status, json, _) = bench.send(admin).await;
        assert_eq!(status, expected, "{path}: {json}");
        let error = json["error"].as_str().unwrap();
        assert!(error.contains(reason), "{error} names {reason}");
    }
}

#[tokio::test]
async fn large_bodies_and_requests_from_other_sites_are_refused() {
    let bench = Bench::new();
    for (length, expected) in [(16 * 1024, 503), (16 * 1024 + 1, 413)] {
        let mut large = viewer("POST", "/stream/start");
        *large.body_mut() = Body::from(vec![b'x'; length]);
        assert_eq!(bench.send(large).await.0, expected, "{length}");
    }
    let mut foreign = viewer("POST", "/stream/start");
    foreign
        .headers_mut()
        .insert("sec-fetch-site", HeaderValue::from_static("cross-site"));
    assert_eq!(bench.send(foreign).await.0, 403);
    let mut foreign = viewer("POST", "/stream/start");
    for (name, value) in [("host", "cloud.example"), ("origin", "http://evil.example")] {
        let value = HeaderValue::from_static(value);
        foreign.headers_mut().insert(name, value);
    }
    assert_eq!(bench.send(foreign).await.0, 403, "over plain HTTP");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_comes_byte_by_byte_is_given_up() {
    let bench = Bench::new();
    let mut slow = viewer("POST", "/stream/start");
    let bytes = futures_util::stream::unfold((), async |()| {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Some((Ok::<_, std::convert::Infallible>("x"), ()))
    });
    *slow.body_mut() = Body::from_stream(bytes);
    let started = Instant::now();
    assert_eq!(bench.send(slow).await.0, 408);
    assert!(started.elapsed() <= Duration::from_secs(11));
}

#[tokio::test]
async fn what_came_by_tls_says_that_it_always_should() {
    let bench = Bench::new();
    for came_by_tls in [true, false] {
        let mut page = request("GET", "/", None);
        if came_by_tls {
            page.extensions_mut().insert(CameByTls);
        }
        let (_, _, head) = bench.send(page).await;
        let told = head.headers().contains_key(STRICT_TRANSPORT_SECURITY);
        assert_eq!(told, came_by_tls);
    }
}

#[tokio::test]
async fn the_openapi_document_tells_every_endpoint_and_no_other() {
    let document: Value = serde_json::from_str(include_str!("../../openapi.json")).unwrap();
    let told = document["paths"].as_object().unwrap();
    let served: Vec<_> = [routes(), media_routes(), open_routes()]
        .into_iter()
        .flatten()
        .collect();
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
        let sample = path
            .replace("{robot}", "r1")
            .replace("{id}", "0")
            .replace("{session}", "0")
            .replace("{file}", "index.m3u8");
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

/// A newer robot's word is handed on as it came: the document must admit it.
#[test]
fn the_openapi_document_closes_no_word_of_a_robot() {
    let document: Value = serde_json::from_str(include_str!("../../openapi.json")).unwrap();
    let told = &document["components"]["schemas"]["State"]["properties"];
    for word in ["/state", "/cause", "/standby", "/publish/properties/state"] {
        let word = told.pointer(word).unwrap();
        assert_eq!(word["type"], "string", "{word}");
        assert_eq!(word.get("enum"), None);
    }
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

#[tokio::test]
async fn a_robot_that_polls_is_not_answered_before_all_that_is_retained_is_known() {
    let bench = Bench::new();
    let poll = || request("GET", "/robots/r1/stream", Some("Bearer t0ken"));
    bench.bridge.fleet.apply(Event::Up(Capabilities::ALL));
    let (status, json, _) = bench.send(poll()).await;
    assert_eq!(status, 503, "{json}");
    // Another bridge's, and one that was retained, say nothing.
    let (topic, mark) = bench.bridge.fleet.mark();
    let say = |correlation: &[u8], retained| {
        bench.bridge.fleet.apply(Event::Message(Message {
            topic: topic.clone(),
            payload: Vec::new(),
            retained,
            may_be_old: false,
            expiry: None,
            correlation: Some(correlation.to_vec()),
        }));
    };
    say(b"other", false);
    say(&mark, true);
    assert_eq!(bench.send(poll()).await.0, 503);
    say(&mark, false);
    assert_eq!(bench.send(poll()).await.0, 200);
    // Of a new connection nothing is known.
    bench.bridge.fleet.apply(Event::Up(Capabilities::ALL));
    assert_eq!(bench.send(poll()).await.0, 503);
}
