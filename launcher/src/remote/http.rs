// SPDX-License-Identifier: MPL-2.0

//! A small HTTP client: one server, one connection that is kept, TLS as everywhere here.

use std::{path::PathBuf, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use droidrelay_wire::{
    Secret,
    net::tls::{self, TlsFiles},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
    header::{self, HeaderMap, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};

/// For the name; then for each of its addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest answer that is read.
const MAX_ANSWER: usize = 256 * 1024;

/// `http(s)://host[:port]/path`; what `Display` shows is safe to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub tls: bool,
    /// An IPv6 address without its brackets.
    pub host: String,
    pub port: u16,
    /// Without a slash at the end.
    pub path: String,
}

impl Url {
    /// The error shows nothing that may be a secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text
            .parse()
            .map_err(|err| format!("it is no URL ({err}): write https://host/path"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => {
                return Err(
                    "it begins with neither http:// nor https://: write https://host/path".into(),
                );
            }
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err("it holds credentials, which everybody on this machine can read among a process's arguments: take them out".into());
        }
        if uri.query().is_some() {
            return Err("it has a query: write it without ? and what follows".into());
        }
        let host = uri.host().unwrap_or_default();
        if host.is_empty() {
            return Err("it has no host".into());
        }
        Ok(Url {
            tls,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// Host and port as the header and a URL have them; the usual port is left out.
    fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// Who we are. Files are read anew for each connection.
#[derive(Debug, Clone, Default)]
pub enum Login {
    #[default]
    None,
    Basic {
        user: String,
        password_file: PathBuf,
    },
    Bearer {
        token_file: PathBuf,
    },
}

impl Login {
    fn header(&self) -> Result<Option<HeaderValue>, String> {
        let text = match self {
            Login::None => return Ok(None),
            Login::Basic {
                user,
                password_file,
            } => {
                let password = Secret::from_file(password_file)?;
                let pair = Secret::new(format!("{user}:{}", password.expose()));
                Secret::new(format!("Basic {}", BASE64_STANDARD.encode(pair.expose())))
            }
            Login::Bearer { token_file } => {
                let token = Secret::from_file(token_file)?;
                Secret::new(format!("Bearer {}", token.expose()))
            }
        };
        let mut header = HeaderValue::from_str(text.expose())
            .map_err(|_| "the token holds characters that HTTP does not carry".to_owned())?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    login: Option<HeaderValue>,
}

pub struct Client {
    url: Url,
    login: Login,
    tls: Option<tls::Client>,
    connection: Option<Connection>,
}

impl Client {
    /// `ca_file`: PEM to trust in place of the system's store.
    pub fn new(url: Url, login: Login, ca_file: Option<PathBuf>) -> Result<Self, String> {
        let files = TlsFiles {
            ca_file,
            ..TlsFiles::default()
        };
        Ok(Client {
            tls: url.tls.then(|| files.client()).transpose()?,
            url,
            login,
            connection: None,
        })
    }

    /// Whether the credential can be read, before anything connects.
    pub fn check(&self) -> Result<(), String> {
        self.login.header().map(|_| ())
    }

    /// Asks the server. `path` stands behind the URL's own. A kept connection that the server has
    /// left meanwhile is made anew, once.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&str>,
    ) -> Result<Answer, String> {
        let kept = self.connection.take().filter(|kept| kept.sender.is_ready());
        if let Some(kept) = kept
            && let Ok(answer) = self.ask(kept, &method, path, body).await
        {
            return Ok(answer);
        }
        let fresh = self.connect().await?;
        self.ask(fresh, &method, path, body).await
    }

    async fn ask(
        &mut self,
        mut connection: Connection,
        method: &Method,
        path: &str,
        body: Option<&str>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url.path))
            .header(header::HOST, self.url.authority())
            .header(header::ACCEPT, "application/json")
            .header(
                header::USER_AGENT,
                concat!("droidrelay/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(login) = &connection.login {
            request = request.header(header::AUTHORIZATION, login);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Bytes::from(body.unwrap_or_default().to_owned());
        let request = request
            .body(Full::new(body))
            .map_err(|err| format!("{}: {err}", self.url))?;
        let lost = |err: &dyn std::fmt::Display| format!("{}: {err}", self.url);
        let answer = connection
            .sender
            .send_request(request)
            .await
            .map_err(|err| lost(&err))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map_err(|err| lost(&err))?
            .to_bytes();
        self.connection = Some(connection);
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    async fn connect(&self) -> Result<Connection, String> {
        let login = self.login.header()?;
        let tcp = connect(&self.url.host, self.url.port).await?;
        let sender = match &self.tls {
            None => self.speak(tcp).await?,
            Some(tls) => {
                let stream = timeout(CONNECT_TIMEOUT, tls.connect(&self.url.host, tcp))
                    .await
                    .map_err(|_| format!("{}: no answer to TLS", self.url))?
                    .map_err(|err| format!("{}: {err}", self.url))?;
                self.speak(stream).await?
            }
        };
        Ok(Connection { sender, login })
    }

    async fn speak<S>(&self, stream: S) -> Result<SendRequest<Full<Bytes>>, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|err| format!("{}: {err}", self.url))?;
        // It ends with its sender, or with the runtime.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// A TCP connection to the first of the host's addresses that takes one.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let addresses = look_up(host, port).await?;
    let mut last = String::new();
    for address in addresses {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // A small request waits for no acknowledgement; without it, it is a little slower.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(err)) => {
                last = format!(
                    "cannot connect to {host}, {address}: {err}; is the server running, and the port right?"
                )
            }
            Err(_) => {
                last = format!(
                    "cannot connect to {host}, {address}: no answer within {} s; a firewall, or the network is down",
                    CONNECT_TIMEOUT.as_secs()
                )
            }
        }
    }
    Err(last)
}

/// The addresses of a name; at least one.
pub async fn look_up(host: &str, port: u16) -> Result<Vec<std::net::SocketAddr>, String> {
    let remedy = "check the name and this machine's name server (DNS)";
    let found = timeout(CONNECT_TIMEOUT, lookup_host((host, port)))
        .await
        .map_err(|_| {
            format!(
                "cannot look up {host:?}: no name server has answered within {} s; check this machine's network",
                CONNECT_TIMEOUT.as_secs()
            )
        })?
        .map_err(|err| format!("cannot look up {host:?}: {err}; {remedy}"))?;
    let addresses: Vec<_> = found.collect();
    if addresses.is_empty() {
        return Err(format!("{host:?} has no address: {remedy}"));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_and_shown_as_it_was_written() {
        for (text, shown, port) in [
            ("https://cloud.example/robots/r1/stream", "", 443),
            ("http://localhost:8080/robots/r1/stream", "", 8080),
            ("https://[::1]/stream/", "https://[::1]/stream", 443),
        ] {
            let url = Url::parse(text).unwrap();
            let shown = if shown.is_empty() { text } else { shown };
            assert_eq!(url.to_string(), shown);
            assert_eq!(url.port, port);
        }
        assert_eq!(Url::parse("http://[::1]:1/x").unwrap().host, "::1");
    }

    #[test]
    fn a_bad_url_is_refused_with_the_remedy_and_without_the_password() {
        for (text, part) in [
            ("cloud.example/robots", "https://host/path"),
            ("mqtt://cloud.example", "https://"),
            ("https://u:hunter2@cloud.example/x", "credentials"),
            ("https://cloud.example/x?token=hunter2", "query"),
            ("https://cloud example", "no URL"),
        ] {
            let error = Url::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
