// SPDX-License-Identifier: MPL-2.0

//! Authentication of requests, and what is refused before it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{AUTHORIZATION, HOST, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE},
        request::Parts,
        uri::Authority,
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use droidrelay_wire::Secret;
use http_body_util::LengthLimitError;
use ipnet::IpNet;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::{
    auth::{Denial, Role, User, readable},
    bridge::Bridge,
    connections::Seat,
    failure::Failure,
    grants::parameter,
    share::ShareLink,
};

/// No body that is sent here is longer.
const MAX_BODY: usize = 16 * 1024;
/// After the connection to the broker, what was revoked may come so late.
const REVOKED_IS_LATE: Duration = Duration::from_secs(1);
/// For a whole body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Lets in who has a credential, and nobody whom a foreign page sends.
pub async fn authenticate(
    State(bridge): State<Arc<Bridge>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let (head, body) = request.into_parts();
    let is_foreign = !head.method.is_safe() && is_of_another_site(&head.headers);
    let peer = client(&bridge.proxies, peer.ip(), &head.headers);
    let user = user_of(&bridge, &head, peer, is_foreign).await;
    conclude(&bridge, user, peer, Request::from_parts(head, body), next).await
}

/// As [`authenticate`], for the stream itself: also who has a share link for the robot, as a viewer
/// of that robot. To look starts it, so that no foreign page may have that done either.
pub async fn authenticate_looker(
    State(bridge): State<Arc<Bridge>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let (head, body) = request.into_parts();
    let peer = client(&bridge.proxies, peer.ip(), &head.headers);
    let query = head.uri.query().map(Secret::from);
    let token = query.and_then(|query| parameter(&query, "share"));
    let user = match token {
        Some(token) if !bridge.auth.is_open() => guest(&bridge, &head, &token, peer).await,
        _ => {
            let is_foreign = is_of_another_site(&head.headers);
            user_of(&bridge, &head, peer, is_foreign).await
        }
    };
    conclude(&bridge, user, peer, Request::from_parts(head, body), next).await
}

/// Answers who is let in, and says to others why they are not.
async fn conclude(
    bridge: &Bridge,
    user: Result<Arc<User>, Refused>,
    peer: IpAddr,
    request: Request,
    next: Next,
) -> Response {
    match user {
        Ok(user) => admit(bridge, user, request, next).await,
        Err(Refused::Failure(failure)) => failure.into_response(),
        Err(Refused::Denial(denial)) => {
            bridge.metrics.refused(denial);
            if denial != Denial::Missing {
                warn!(%peer, "refused: {denial:?}");
            }
            refuse(denial, is_of_a_script(request.headers()))
        }
    }
}

/// Why somebody is not let in.
pub enum Refused {
    Denial(Denial),
    Failure(Failure),
}

impl From<Denial> for Refused {
    fn from(denial: Denial) -> Self {
        Refused::Denial(denial)
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Refused::Failure(failure)
    }
}

async fn user_of(
    bridge: &Bridge,
    head: &Parts,
    peer: IpAddr,
    is_foreign: bool,
) -> Result<Arc<User>, Refused> {
    if is_foreign {
        return Err(Failure::forbidden("requests from other sites are refused").into());
    }
    if bridge.auth.is_open() && !names_this_host(head.headers.get(HOST)) {
        let reason = "without any [[user]] only requests to localhost or 127.0.0.1 are answered";
        return Err(Failure::forbidden(reason).into());
    }
    let authorization = head.headers.get(AUTHORIZATION);
    Ok(bridge.auth.check(authorization, peer).await?)
}

/// Who holds a link is a viewer of its robot. What has begun goes on when the link has ended; then
/// MediaMTX knows its session.
async fn guest(
    bridge: &Bridge,
    head: &Parts,
    token: &Secret,
    peer: IpAddr,
) -> Result<Arc<User>, Refused> {
    let begins = head.method == Method::POST || head.uri.path().ends_with("/index.m3u8");
    let link = match begins {
        true => link_of(bridge, token, peer).await?,
        false => bridge
            .fleet
            .check_begun_share(token.expose())
            .ok_or(Denial::Wrong)?,
    };
    Ok(Arc::new(User {
        name: format!("share {}", link.id),
        role: Role::Viewer,
        robots: Some(vec![link.robot]),
        password: None,
        token: None,
    }))
}

/// The link of this token; a wrong one counts as a wrong password does.
pub async fn link_of(bridge: &Bridge, token: &Secret, ip: IpAddr) -> Result<ShareLink, Refused> {
    bridge.auth.admit(ip)?;
    // What was revoked is still on its way.
    if !bridge.fleet.settled(Instant::now() + REVOKED_IS_LATE).await {
        let reason = "which links are revoked is not known yet: try again in a second";
        return Err(Failure::unavailable(reason).into());
    }
    bridge.fleet.check_share(token.expose()).ok_or_else(|| {
        bridge.auth.charge(ip);
        Denial::Wrong.into()
    })
}

/// Answers `user`, whose request it is.
async fn admit(bridge: &Bridge, user: Arc<User>, request: Request, next: Next) -> Response {
    let seat = request.extensions().get::<Arc<Seat>>();
    let busy = seat.map(Seat::busy);
    let in_progress = match bridge.requests.begin(&user, busy) {
        Ok(in_progress) => Arc::new(in_progress),
        Err(failure) => return failure.into_response(),
    };
    let mut request = match whole(request).await {
        Ok(request) => request,
        Err(failure) => return failure.into_response(),
    };
    request.extensions_mut().insert(user);
    // An answer that goes on takes its share of it.
    request.extensions_mut().insert(in_progress.clone());
    let response = next.run(request).await;
    drop(in_progress);
    response
}

/// A browser adds its user's credentials to requests that other sites make it send. It says which
/// site that is; over plain HTTP only by its name, which has to be the one that is asked.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    if let Some(site) = headers.get(SITE) {
        return site == "cross-site" || site == "same-site";
    }
    let Some(origin) = headers.get(ORIGIN) else {
        return false;
    };
    let own = headers.get(HOST).and_then(|host| host.to_str().ok());
    // "null", of a sandbox or a file, is nobody's.
    let of_origin = origin.to_str().ok().and_then(|origin| {
        let (scheme, authority) = origin.split_once("://")?;
        Some((scheme, authority))
    });
    let (Some((scheme, authority)), Some(own)) = (of_origin, own) else {
        return true;
    };
    let port = if scheme == "https" { ":443" } else { ":80" };
    let name = |authority: &str| {
        let authority = authority.strip_suffix(port).unwrap_or(authority);
        authority.to_ascii_lowercase()
    };
    name(authority) != name(own)
}

/// The request with its whole body, which comes within a time of its own, however slowly.
async fn whole(request: Request) -> Result<Request, Failure> {
    let (parts, body) = request.into_parts();
    let body = match timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => body,
        Ok(Err(err)) => {
            let is_too_long = err.into_inner().is::<LengthLimitError>();
            return Err(if is_too_long {
                Failure::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("a body has at most {MAX_BODY} bytes"),
                )
            } else {
                Failure::bad_request("the body did not come whole")
            });
        }
        Err(_) => {
            return Err(Failure::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("the body did not come within {} s", BODY_TIMEOUT.as_secs()),
            ));
        }
    };
    Ok(Request::from_parts(parts, Body::from(body)))
}

/// Who asks: the peer, or whom the last of the trusted proxies says that it speaks for. A proxy on
/// this host is one of them.
pub fn client(proxies: &[IpNet], peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");
    let is_trusted = |address: IpAddr| {
        let address = address.to_canonical();
        address.is_loopback() || proxies.iter().any(|network| network.contains(&address))
    };
    let mut client = peer;
    let values = headers.get_all(FORWARDED).iter().rev();
    for hop in values.flat_map(|value| value.to_str().unwrap_or_default().rsplit(',')) {
        if !is_trusted(client) {
            break;
        }
        client = readable(hop);
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

/// The answer to who has no right credential.
pub fn refuse(denial: Denial, is_of_a_script: bool) -> Response {
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
        Denial::Busy => (
            StatusCode::TOO_MANY_REQUESTS,
            "too many passwords are being checked now: try again in a second",
        ),
    };
    let mut response = Failure::new(status, reason).into_response();
    let headers = response.headers_mut();
    let wait = match denial {
        Denial::Limited(wait) => Some(wait),
        Denial::Busy => Some(Duration::from_secs(1)),
        Denial::Missing | Denial::Wrong => None,
    };
    if let Some(wait) = wait {
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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_proxy_that_is_trusted_says_who_asks_and_nobody_else_does() {
        let proxies = ["127.0.0.1/32", "10.0.0.0/8"].map(|text| text.parse().unwrap());
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
        assert_eq!(asked("10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(asked("::1", &["[2001:db8::7]:50000"]), "2001:db8::7");
        assert_eq!(asked("127.0.0.1", &["198.51.100.7, unknown"]), "::");
        assert_eq!(asked("127.0.0.1", &[]), "127.0.0.1");
    }

    #[test]
    fn a_site_that_a_browser_names_is_the_one_that_is_asked() {
        let is_foreign = |headers: &[(&'static str, &'static str)]| {
            let headers = headers.iter().map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            });
            is_of_another_site(&headers.collect())
        };
        let host = ("host", "cloud.example:8080");
        for (headers, foreign) in [
            (&[host][..], false),
            (&[host, ("origin", "http://cloud.example:8080")], false),
            (&[host, ("origin", "http://Cloud.Example:8080")], false),
            (&[host, ("origin", "http://cloud.example")], true),
            (&[host, ("origin", "http://cloud.example:8081")], true),
            (&[host, ("origin", "http://evil.example:8080")], true),
            (
                &[host, ("origin", "http://cloud.example:8080.evil.example")],
                true,
            ),
            (&[host, ("origin", "null")], true),
            (&[("origin", "http://cloud.example")], true),
            (
                &[("host", "a.example:443"), ("origin", "https://a.example")],
                false,
            ),
            (
                &[("host", "a.example"), ("origin", "http://a.example:80")],
                false,
            ),
            (
                &[host, ("sec-fetch-site", "same-origin"), ("origin", "null")],
                false,
            ),
            (&[host, ("sec-fetch-site", "same-site")], true),
            (&[host, ("sec-fetch-site", "cross-site")], true),
        ] {
            assert_eq!(is_foreign(headers), foreign, "{headers:?}");
        }
    }
}
