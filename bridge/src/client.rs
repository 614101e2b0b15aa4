// SPDX-License-Identifier: MPL-2.0

//! As much of an HTTP client as webhooks, hooks and MediaMTX's API need: one request, one
//! connection, nothing followed.

use std::{fmt, time::Duration};

use axum::http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use droidrelay_wire::{
    Secret,
    net::{
        tls::{self, TlsFiles},
        url::percent_decode,
    },
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

/// Longest answer that is read.
const MAX_ANSWER: usize = 256 * 1024;

/// An `http://` or `https://` URL. What it shows holds no credentials.
#[derive(Clone)]
pub struct Url {
    uri: Uri,
    authorization: Option<HeaderValue>,
}

impl Url {
    /// Reads a URL; credentials in it become Basic authorization. The error shows nothing of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        const REMEDY: &str = "write http:// or https://, the host, and the path";
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| format!("the URL has no scheme: {REMEDY}"))?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (authorization, host) = match authority.rsplit_once('@') {
            None => (None, authority),
            Some((userinfo, host)) => {
                let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
                let decode =
                    |text| percent_decode(text).map_err(|_| "the URL's credentials are not UTF-8");
                let password = Secret::new(decode(password)?);
                (Some(basic(&decode(user)?, &password)), host)
            }
        };
        let uri: Uri = format!("{scheme}://{host}{path}")
            .parse()
            .map_err(|_| format!("the URL cannot be read: {REMEDY}"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(format!("the URL is not one of HTTP: {REMEDY}"));
        }
        Ok(Url { uri, authorization })
    }

    /// With this path behind its own.
    pub fn join(&self, path: &str) -> Result<Self, String> {
        let base = self.uri.to_string();
        let uri = format!("{}{path}", base.trim_end_matches('/'));
        Ok(Url {
            uri: uri.parse().map_err(|err| format!("{path:?}: {err}"))?,
            authorization: self.authorization.clone(),
        })
    }

    /// Authorizes itself so, unless it holds credentials.
    pub fn or_authorize(mut self, authorization: Option<HeaderValue>) -> Self {
        self.authorization = self.authorization.or(authorization);
        self
    }

    pub fn is_tls(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    fn host(&self) -> &str {
        // An IPv6 address stands in brackets here, and without them everywhere else.
        self.uri.host().unwrap_or_default().trim_matches(['[', ']'])
    }

    fn port(&self) -> u16 {
        let usual = if self.is_tls() { 443 } else { 80 };
        self.uri.port_u16().unwrap_or(usual)
    }
}

impl fmt::Display for Url {
    /// Scheme and host only: a path or query may be a secret (a webhook's usually is).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let authority = self
            .uri
            .authority()
            .map_or("", |authority| authority.as_str());
        write!(f, "{scheme}://{authority}")
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

pub fn basic(user: &str, password: &Secret) -> HeaderValue {
    let pair = Secret::new(format!("{user}:{}", password.expose()));
    sensitive(&format!("Basic {}", STANDARD.encode(pair.expose())))
}

pub fn bearer(token: &Secret) -> HeaderValue {
    sensitive(&format!("Bearer {}", token.expose()))
}

fn sensitive(text: &str) -> HeaderValue {
    let mut value =
        HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("invalid"));
    value.set_sensitive(true);
    value
}

/// Trust for `https://`.
#[derive(Clone)]
pub struct Client(Option<tls::Client>);

impl Client {
    /// `needs_tls`: one of the URLs to come is https.
    pub fn new(needs_tls: bool, files: &TlsFiles) -> Result<Self, String> {
        Ok(Client(needs_tls.then(|| files.client()).transpose()?))
    }

    /// Sends one request; the answer's status and body, within `patience`.
    pub async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: impl Into<Bytes>,
        patience: Duration,
    ) -> Result<(StatusCode, Bytes), String> {
        let sent = self.send_unbounded(method, url, headers, body.into());
        match timeout(patience, sent).await {
            Ok(answer) => answer.map_err(|err| format!("{url}: {err}")),
            Err(_) => {
                let seconds = patience.as_secs_f64();
                Err(format!("{url}: no answer within {seconds} s"))
            }
        }
    }

    async fn send_unbounded(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), String> {
        let mut request = Request::builder()
            .method(method)
            .uri(url.uri.path_and_query().map_or("/", |path| path.as_str()))
            .body(Full::new(body.clone()))
            .map_err(|err| err.to_string())?;
        *request.headers_mut() = headers;
        let host = url
            .uri
            .authority()
            .map_or("", |authority| authority.as_str());
        let host = HeaderValue::from_str(host).map_err(|err| err.to_string())?;
        let headers = request.headers_mut();
        headers.insert(HOST, host);
        headers.insert(CONTENT_LENGTH, body.len().into());
        if !body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let agent = concat!("droidrelay-bridge/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if let Some(authorization) = &url.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let tcp = TcpStream::connect((url.host(), url.port()))
            .await
            .map_err(|err| format!("cannot connect: {err}"))?;
        // Slower without, not wrong.
        let _ = tcp.set_nodelay(true);
        match (&self.0, url.is_tls()) {
            (_, false) => exchange(tcp, request).await,
            (Some(tls), true) => exchange(tls.connect(url.host(), tcp).await?, request).await,
            (None, true) => Err("TLS is not set up".into()),
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|err| err.to_string())?;
    let answer = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|err| err.to_string())?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER);
        let body = body.collect().await.map_err(|err| err.to_string())?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(connection, answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            // What it has read may be all of the answer.
            Ok(()) => answer.await,
            Err(err) => Err(err.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_a_url_authorize_and_are_never_shown() {
        let url =
            Url::parse("https://me:hunter%2F2@h.example:8443/api/webhook/s3cret?x=1").unwrap();
        assert_eq!(
            format!("{url} {url:?}"),
            "https://h.example:8443 https://h.example:8443"
        );
        let expected = format!("Basic {}", STANDARD.encode("me:hunter/2"));
        assert_eq!(url.authorization.as_ref().unwrap(), &expected);
        assert_eq!(
            url.uri.path_and_query().unwrap().as_str(),
            "/api/webhook/s3cret?x=1"
        );
        assert_eq!((url.host(), url.port()), ("h.example", 8443));
        let six = Url::parse("http://[::1]/").unwrap();
        assert_eq!((six.host(), six.port()), ("::1", 80));
        for wrong in [
            "hunter2",
            "ftp://me:hunter2@h",
            "http://",
            "http://h h/hunter2",
        ] {
            let error = Url::parse(wrong).unwrap_err();
            assert!(
                error.contains("http") && !error.contains("hunter2"),
                "{error}"
            );
        }
    }
}
