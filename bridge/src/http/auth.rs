// SPDX-License-Identifier: MPL-2.0

//! Authentication of requests, and what is refused before it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{AUTHORIZATION, HOST, RETRY_AFTER, WWW_AUTHENTICATE},
        uri::Authority,
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use ipnet::IpNet;
use tracing::warn;

use crate::{auth::Denial, bridge::Bridge, failure::Failure};

/// Lets in who has a credential, and nobody whom a foreign page sends.
pub async fn authenticate(
    State(bridge): State<Arc<Bridge>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    // A browser adds its user's credentials to requests that other sites make it send.
    const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    let foreign = |site: &HeaderValue| site == "cross-site" || site == "same-site";
    if !request.method().is_safe() && request.headers().get(SITE).is_some_and(foreign) {
        return Failure::forbidden("requests from other sites are refused").into_response();
    }
    if bridge.auth.is_open() && !names_this_host(request.headers().get(HOST)) {
        let reason = "without any [[user]] only requests to localhost or 127.0.0.1 are answered";
        return Failure::forbidden(reason).into_response();
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
fn client(proxies: &[IpNet], peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");
    let is_trusted = |address: IpAddr| {
        let address = address.to_canonical();
        proxies.iter().any(|network| network.contains(&address))
    };
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
        assert_eq!(asked("127.0.0.1", &["x, unknown"]), "127.0.0.1");
        assert_eq!(asked("127.0.0.1", &[]), "127.0.0.1");
    }
}
