// SPDX-License-Identifier: MPL-2.0

//! The page that a browser gets: one file, with a policy that lets nothing else run or load.

use std::sync::LazyLock;

use axum::{
    http::{
        HeaderMap, HeaderValue,
        header::{ACCEPT, CONTENT_SECURITY_POLICY, REFERRER_POLICY},
    },
    response::{Html, IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ring::digest::{SHA256, digest};

use crate::watch::{Watch, WatchUrl};

const PAGE: &str = include_str!("../../page/index.html");

/// Whether who sends these is a browser that wants to show something.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"))
}

/// The page, for streams that are where `watch` says.
pub fn answer(watch: &Watch) -> Response {
    // What a watch URL may hold is ASCII without control characters, or is left out.
    let policy = HeaderValue::from_str(&policy(watch))
        .unwrap_or(HeaderValue::from_static("default-src 'none'"));
    let headers = [
        (CONTENT_SECURITY_POLICY, policy),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, Html(PAGE)).into_response()
}

fn policy(watch: &Watch) -> String {
    static OWN: LazyLock<String> = LazyLock::new(|| {
        format!(
            "default-src 'none'; script-src {}; style-src {}; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            hash_of("<script type=\"module\">", "</script>"),
            hash_of("<style>", "</style>"),
        )
    });
    // What the bridge hands on is asked of itself.
    let webrtc = watch.webrtc.as_ref().filter(|_| !watch.own.whep);
    let hls = watch.hls.as_ref().filter(|_| !watch.own.hls);
    let origins: String = webrtc
        .into_iter()
        .chain(hls)
        .map(|url| format!(" {}", origin(url)))
        .collect();
    format!(
        "{}; connect-src 'self'{origins}; media-src 'self' blob:{origins}",
        *OWN
    )
}

/// The source expression for the page's one element between `begin` and `end`.
fn hash_of(begin: &str, end: &str) -> String {
    let content = PAGE
        .split_once(begin)
        .and_then(|(_, rest)| rest.split_once(end))
        .map_or("", |(content, _)| content);
    let hash = STANDARD.encode(digest(&SHA256, content.as_bytes()));
    format!("'sha256-{hash}'")
}

/// Scheme and host; all hosts of the scheme where the host depends on the robot.
fn origin(url: &WatchUrl) -> String {
    let url = url.template();
    let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]_".contains(c);
    if !host.is_empty() && host.chars().all(plain) {
        format!("{scheme}://{host}")
    } else {
        format!("{scheme}:")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::Own;

    fn page(webrtc: &str, hls: &str) -> String {
        let url = |text: &str| WatchUrl::try_from(text.to_owned()).ok();
        policy(&Watch {
            rtsp: url("rtsps://media.example:8322/{path}"),
            webrtc: url(webrtc),
            hls: url(hls),
            own: Own::default(),
        })
    }

    #[test]
    fn the_page_may_reach_the_bridge_and_the_streams_and_nothing_else() {
        let policy = page(
            "https://media.example:8889/{path}",
            "https://{robot}.example/index.m3u8",
        );
        assert!(
            policy.contains("connect-src 'self' https://media.example:8889 https:;"),
            "{policy}"
        );
        assert!(!policy.contains("rtsps"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }

    #[test]
    fn where_the_bridge_hands_all_on_the_page_reaches_nothing_but_the_bridge() {
        let url = |port| WatchUrl::try_from(format!("https://media.example:{port}/{{path}}")).ok();
        let policy = policy(&Watch {
            webrtc: url(8889),
            hls: url(8888),
            own: Own {
                whep: true,
                hls: true,
            },
            ..Watch::default()
        });
        assert!(
            policy.contains("connect-src 'self'; media-src 'self' blob:"),
            "{policy}"
        );
    }

    #[test]
    fn nothing_in_a_watch_url_widens_the_policy() {
        let policy = page("https://a;script-src *;/x", "");
        assert!(policy.contains("connect-src 'self' https:;"), "{policy}");
        assert_eq!(policy.matches("script-src").count(), 1);
    }

    #[test]
    fn the_page_has_one_script_and_one_style_and_loads_nothing() {
        for (what, count) in [
            ("<script", 1),
            ("</script>", 1),
            ("<style", 1),
            (" style=", 0),
            (" onclick", 0),
            ("https://", 0),
            ("src=", 0),
            ("@import", 0),
        ] {
            assert_eq!(PAGE.matches(what).count(), count, "{what}");
        }
        assert!(!page("", "").contains(&STANDARD.encode(digest(&SHA256, b""))));
    }

    #[test]
    fn a_browser_gets_the_page_and_an_app_does_not() {
        let headers = |accept| HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
        assert!(is_wanted(&headers(
            "text/html,application/xhtml+xml,*/*;q=0.8"
        )));
        for app in ["*/*", "application/json"] {
            assert!(!is_wanted(&headers(app)), "{app}");
        }
        assert!(!is_wanted(&HeaderMap::new()));
    }
}
