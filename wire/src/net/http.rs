// SPDX-License-Identifier: MPL-2.0

//! A small HTTP client: one server, one request at a time, nothing followed, TLS as everywhere
//! here.

use std::{fmt, future::Future, path::PathBuf, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use http_body_util::{BodyExt, Full, Limited};
pub use hyper::{
    Method, StatusCode,
    body::{Bytes, Incoming},
    header::{HeaderMap, HeaderValue},
};
use hyper::{
    Request, Uri,
    client::conn::http1::{SendRequest, handshake},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use super::{
    connect::{connect, look_up},
    tls::{self, TlsFiles},
    url::{Authority, UserInfo, split_port, split_userinfo},
};
use crate::secret::Secret;

/// For the name, for its addresses, for TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest answer that is read.
const MAX_ANSWER: usize = 256 * 1024;

/// What a URL may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Everybody on this machine may read it, as among a process's arguments: credentials and a
    /// query are refused. It is shown with its path.
    Public,
    /// Credentials become Basic authorization; path and query may be a secret, as a webhook's are.
    /// Scheme, host and port are shown.
    Secret,
}

/// An `http://` or `https://` URL; what `Display` and `Debug` show is safe to log.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    is_tls: bool,
    host: String,
    port: u16,
    path: String,
    /// With its question mark.
    query: String,
    userinfo: UserInfo,
    policy: Policy,
}

impl Url {
    /// The error shows nothing that may be a secret.
    pub fn parse(text: &str, policy: Policy) -> Result<Self, String> {
        const REMEDY: &str = "write https://host/path";
        let malformed = || format!("this is no URL: {REMEDY}");
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => {
                return Err(format!(
                    "the URL begins with neither http:// nor https://: {REMEDY}"
                ));
            }
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        let (userinfo, authority) = split_userinfo(authority);
        if policy == Policy::Public && userinfo.is_some() {
            return Err("the URL holds credentials, which everybody on this machine can read among a process's arguments: take them out".into());
        }
        // What this refuses to show may be the beginning of a password.
        let (host, port) = split_port(authority).map_err(|_| malformed())?;
        if host.is_empty() {
            return Err(format!("the URL has no host: {REMEDY}"));
        }
        let uri: Uri = format!("http://{authority}{rest}")
            .parse()
            .map_err(|_| malformed())?;
        let query = uri
            .query()
            .map_or(String::new(), |query| format!("?{query}"));
        if policy == Policy::Public && !query.is_empty() {
            return Err("the URL has a query: write it without ? and what follows".into());
        }
        Ok(Url {
            is_tls,
            host: host.to_owned(),
            port: port.unwrap_or(if is_tls { 443 } else { 80 }),
            path: uri.path().to_owned(),
            query,
            userinfo: UserInfo::parse(userinfo)
                .map_err(|_| "the credentials in the URL are not UTF-8 after percent-decoding")?,
            policy,
        })
    }

    /// Host and port as the header and a URL have them; the usual port is left out.
    fn authority(&self) -> String {
        let authority = Authority(&self.host, self.port).to_string();
        let usual = if self.is_tls { ":443" } else { ":80" };
        match authority.strip_suffix(usual) {
            Some(host) => host.to_owned(),
            None => authority,
        }
    }

    /// What is asked for: `path` stands behind the URL's own.
    fn target(&self, path: &str) -> String {
        let own = match path {
            "" => &self.path,
            _ => self.path.trim_end_matches('/'),
        };
        format!("{own}{path}{}", self.query)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())?;
        match self.policy {
            Policy::Public => f.write_str(self.path.trim_end_matches('/')),
            Policy::Secret => Ok(()),
        }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Who asks. Files are read anew for each connection.
#[derive(Debug, Clone, Default)]
pub enum Login {
    /// Nobody, but for credentials in the URL.
    #[default]
    None,
    Basic {
        user: String,
        password_file: PathBuf,
    },
    Bearer {
        token_file: PathBuf,
    },
    /// A secret that is in no file.
    Given {
        user: String,
        password: Secret,
    },
    /// A token that is in no file.
    Token(Secret),
}

impl Login {
    fn header(&self) -> Result<Option<HeaderValue>, String> {
        match self {
            Login::None => Ok(None),
            Login::Basic {
                user,
                password_file,
            } => basic(user, Secret::from_file(password_file)?.expose()).map(Some),
            Login::Bearer { token_file } => {
                sensitive("Bearer", Secret::from_file(token_file)?.expose()).map(Some)
            }
            Login::Given { user, password } => basic(user, password.expose()).map(Some),
            Login::Token(token) => sensitive("Bearer", token.expose()).map(Some),
        }
    }
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, String> {
    let pair = Secret::new(format!("{user}:{password}"));
    sensitive("Basic", &BASE64_STANDARD.encode(pair.expose()))
}

fn sensitive(scheme: &str, credential: &str) -> Result<HeaderValue, String> {
    let text = Secret::new(format!("{scheme} {credential}"));
    let mut header = HeaderValue::from_str(text.expose())
        .map_err(|_| "the token holds characters that HTTP does not carry".to_owned())?;
    header.set_sensitive(true);
    Ok(header)
}

/// What is asked of the server.
#[derive(Debug, Clone, Default)]
pub struct Query {
    pub method: Method,
    /// Stands behind the URL's own path.
    pub path: String,
    pub headers: HeaderMap,
    /// JSON where no header says otherwise, or nothing.
    pub body: Bytes,
}

impl Query {
    pub fn get(path: impl Into<String>) -> Self {
        Query {
            path: path.into(),
            ..Query::default()
        }
    }

    pub fn with_json(method: Method, path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Query {
            method,
            path: path.into(),
            body: body.into(),
            ..Query::default()
        }
    }
}

#[derive(Debug, Clone)]
pub struct Answer<B = Bytes> {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: B,
}

/// A server, and who asks it.
#[derive(Clone)]
pub struct Client {
    url: Url,
    login: Login,
    tls: Option<tls::Source>,
    agent: &'static str,
}

impl Client {
    /// `trust` is read where the URL is https, and again when it has changed. `agent`: the name by which we introduce ourselves.
    /// Credentials in the URL come before `login`.
    pub fn new(
        url: Url,
        login: Login,
        trust: &TlsFiles,
        agent: &'static str,
    ) -> Result<Self, String> {
        Ok(Client {
            tls: url
                .is_tls
                .then(|| tls::Source::new(trust.clone()))
                .transpose()?,
            url,
            login,
            agent,
        })
    }

    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Whether the credential can be read, before anything connects.
    pub fn check(&self) -> Result<(), String> {
        self.authorization().map(|_| ())
    }

    /// Asks over a connection of its own; the answer comes within `patience`.
    pub async fn send(&self, query: &Query, patience: Duration) -> Result<Answer, String> {
        KeptClient::new(self.clone()).send(query, patience).await
    }

    /// As [`Client::send`], without the body: that comes as it is read, however long it is.
    pub async fn open(
        &self,
        query: &Query,
        patience: Duration,
    ) -> Result<Answer<Incoming>, String> {
        let opened = async { self.connect().await?.open(self, query).await };
        self.in_time(patience, opened).await
    }

    async fn in_time<T>(
        &self,
        patience: Duration,
        answer: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let url = &self.url;
        match timeout(patience, answer).await {
            Ok(answer) => answer.map_err(|err| format!("{url}: {err}")),
            Err(_) => {
                let seconds = patience.as_secs_f64();
                Err(format!("{url}: no answer within {seconds} s"))
            }
        }
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        let UserInfo { username, password } = &self.url.userinfo;
        if username.is_none() && password.is_none() {
            return self.login.header();
        }
        let user = username.as_deref().unwrap_or_default();
        let password = password.as_ref().map_or("", Secret::expose);
        basic(user, password).map(Some)
    }

    async fn connect(&self) -> Result<Connection, String> {
        let authorization = self.authorization()?;
        let Url { host, port, .. } = &self.url;
        let addresses = look_up(host, *port, CONNECT_TIMEOUT).await?;
        let tcp = connect(&addresses, CONNECT_TIMEOUT)
            .await
            .map_err(|err| format!("cannot connect to {host}: {err}"))?;
        let sender = match &self.tls {
            None => speak(tcp).await?,
            Some(tls) => {
                let stream = timeout(CONNECT_TIMEOUT, tls.client()?.connect(host, tcp))
                    .await
                    .map_err(|_| "no answer to TLS")??;
                speak(stream).await?
            }
        };
        Ok(Connection {
            sender,
            authorization,
        })
    }
}

/// A client that keeps its connection.
pub struct KeptClient {
    client: Client,
    connection: Option<Connection>,
}

impl KeptClient {
    pub fn new(client: Client) -> Self {
        KeptClient {
            client,
            connection: None,
        }
    }

    /// Asks over the kept connection, or over a new one where the server has left it meanwhile;
    /// the answer comes within `patience`.
    pub async fn send(&mut self, query: &Query, patience: Duration) -> Result<Answer, String> {
        let client = self.client.clone();
        client.in_time(patience, self.exchange(query)).await
    }

    async fn exchange(&mut self, query: &Query) -> Result<Answer, String> {
        let kept = self.connection.take();
        if let Some(mut kept) = kept.filter(|kept| kept.sender.is_ready())
            && let Ok(answer) = kept.ask(&self.client, query).await
        {
            self.connection = Some(kept);
            return Ok(answer);
        }
        let mut fresh = self.client.connect().await?;
        let answer = fresh.ask(&self.client, query).await?;
        self.connection = Some(fresh);
        Ok(answer)
    }
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    authorization: Option<HeaderValue>,
}

impl Connection {
    async fn ask(&mut self, client: &Client, query: &Query) -> Result<Answer, String> {
        let Answer {
            status,
            headers,
            body,
        } = self.open(client, query).await?;
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        Ok(Answer {
            status,
            headers,
            body: body.map_err(|err| err.to_string())?.to_bytes(),
        })
    }

    async fn open(&mut self, client: &Client, query: &Query) -> Result<Answer<Incoming>, String> {
        let mut request = Request::builder()
            .method(&query.method)
            .uri(client.url.target(&query.path))
            .body(Full::new(query.body.clone()))
            .map_err(|err| err.to_string())?;
        let headers = request.headers_mut();
        headers.clone_from(&query.headers);
        let host = HeaderValue::from_str(&client.url.authority()).map_err(|err| err.to_string())?;
        headers.insert(HOST, host);
        headers.insert(USER_AGENT, HeaderValue::from_static(client.agent));
        if !query.body.is_empty() && !headers.contains_key(CONTENT_TYPE) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let answer = self.sender.send_request(request).await;
        let (head, body) = answer.map_err(|err| err.to_string())?.into_parts();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    }
}

async fn speak<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|err| err.to_string())?;
    // It ends with its sender, or with the runtime.
    tokio::spawn(connection);
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(text: &str) -> Result<Url, String> {
        Url::parse(text, Policy::Public)
    }

    fn secret(text: &str) -> Result<Url, String> {
        Url::parse(text, Policy::Secret)
    }

    #[test]
    fn a_url_is_read_and_shown_as_it_was_written() {
        for (text, shown, port) in [
            ("https://cloud.example/robots/r1/stream", "", 443),
            ("http://localhost:8080/robots/r1/stream", "", 8080),
            ("https://[::1]/stream/", "https://[::1]/stream", 443),
        ] {
            let url = public(text).unwrap();
            let shown = if shown.is_empty() { text } else { shown };
            assert_eq!(url.to_string(), shown);
            assert_eq!(url.port, port);
        }
        assert_eq!(public("http://[::1]:1/x").unwrap().host, "::1");
    }

    #[test]
    fn a_bad_url_is_refused_with_the_remedy_and_without_the_password() {
        for (text, part) in [
            ("cloud.example/robots", "https://host/path"),
            ("mqtt://cloud.example", "https://"),
            ("https://u:hunter2@cloud.example/x", "credentials"),
            ("https://cloud.example/x?token=hunter2", "query"),
            ("https://cloud example", "no URL"),
            ("https://u:hunter2/x@cloud.example/x", "no URL"),
        ] {
            let error = public(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        for wrong in [
            "hunter2",
            "ftp://me:hunter2@h",
            "http://",
            "http://h h/hunter2",
        ] {
            let error = secret(wrong).unwrap_err();
            assert!(
                error.contains("http") && !error.contains("hunter2"),
                "{error}"
            );
        }
    }

    #[test]
    fn credentials_in_a_url_authorize_and_are_never_shown() {
        let url = secret("https://me:hunter%2F2@h.example:8443/api/webhook/s3cret?x=1").unwrap();
        assert_eq!(
            format!("{url} {url:?}"),
            "https://h.example:8443 https://h.example:8443"
        );
        assert_eq!(url.target(""), "/api/webhook/s3cret?x=1");
        assert_eq!((url.host.as_str(), url.port), ("h.example", 8443));
        let six = secret("http://[::1]/").unwrap();
        assert_eq!((six.host.as_str(), six.port), ("::1", 80));
        let client = Client {
            url: Url {
                is_tls: false,
                ..url
            },
            login: Login::None,
            tls: None,
            agent: "test",
        };
        let authorization = client.authorization().unwrap().unwrap();
        let expected = format!("Basic {}", BASE64_STANDARD.encode("me:hunter/2"));
        assert_eq!(authorization, expected);
        assert!(authorization.is_sensitive());
    }

    #[test]
    fn a_path_stands_behind_that_of_the_url() {
        let target = |url: &str, path| public(url).unwrap().target(path);
        assert_eq!(target("http://h", ""), "/");
        assert_eq!(target("http://h/", "/x"), "/x");
        assert_eq!(target("http://h/a/", "/x?y=1"), "/a/x?y=1");
        assert_eq!(target("http://h/a", "?wait=1"), "/a?wait=1");
        assert_eq!(target("http://h/a/", ""), "/a/");
    }
}
