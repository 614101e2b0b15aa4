// SPDX-License-Identifier: MPL-2.0

//! `--metrics`: what the launcher and its elements count, as Prometheus reads it.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::net::Stop;

/// How long the main loop may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// For a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at a time.
const CONNECTIONS: usize = 16;

/// `[HOST:]PORT`; the host is this machine alone where none is given.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    if let Ok(port) = port.parse() {
        return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    }
    text.replace("localhost:", "127.0.0.1:")
        .parse()
        .map_err(|_| {
            "write PORT, or ADDRESS:PORT such as 127.0.0.1:9101, [::1]:9101 or 0.0.0.0:9101"
                .to_owned()
        })
}

/// Answers `GET /metrics` with what `scrape` puts into the sender.
pub async fn serve<F>(listener: TcpListener, mut stop: Stop, scrape: F)
where
    F: Fn(oneshot::Sender<String>) + Clone + Send + Sync + 'static,
{
    // The system gave it to us, and takes it back only with the process.
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            () = stop.asked() => return,
            Ok(place) = places.clone().acquire_owned() => place,
        };
        let stream = tokio::select! {
            () = stop.asked() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // Out of descriptors, or the peer is gone: not for ever.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let scrape = scrape.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| answer(request, scrape.clone()));
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(place);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer<F>(
    request: Request<Incoming>,
    scrape: F,
) -> Result<Response<Full<Bytes>>, Infallible>
where
    F: Fn(oneshot::Sender<String>),
{
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, text) = match (request.uri().path(), is_read) {
        ("/metrics", true) => {
            let (sender, receiver) = oneshot::channel();
            scrape(sender);
            match timeout(PATIENCE, receiver).await {
                Ok(Ok(text)) => (StatusCode::OK, text),
                _ => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the launcher's main loop does not answer\n".to_owned(),
                ),
            }
        }
        ("/metrics", false) => (StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned()),
        _ => (
            StatusCode::NOT_FOUND,
            "droidrelay: /metrics is here\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// Metrics in Prometheus' text format 0.0.4: help and samples of each name.
#[derive(Default)]
pub struct Page(BTreeMap<&'static str, (&'static str, String)>);

impl Page {
    /// A sample of the metric `name`: a counter if that ends in `_total`, else a gauge.
    pub fn add(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: f64,
    ) {
        let (_, samples) = self.0.entry(name).or_insert((help, String::new()));
        samples.push_str(name);
        for (n, (label, value)) in labels.iter().enumerate() {
            let open = if n == 0 { '{' } else { ',' };
            let value = value
                .replace('\\', r"\\")
                .replace('"', "\\\"")
                .replace('\n', r"\n");
            let _ = write!(samples, "{open}{label}=\"{value}\"");
        }
        if !labels.is_empty() {
            samples.push('}');
        }
        let _ = writeln!(samples, " {value}");
    }

    /// This process, under the names that all Prometheus clients use.
    pub fn add_process(&mut self) {
        let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else {
            return;
        };
        // The name in brackets may hold anything. Behind it stands the third field of proc(5).
        let fields: Vec<f64> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        let field = |n: usize| fields.get(n - 3).copied().unwrap_or_default();
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        for (name, help, value) in [
            (
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
                (field(14) + field(15)) / ticks,
            ),
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
                field(24) * rustix::param::page_size() as f64,
            ),
            ("process_threads", "Number of threads.", field(20)),
            (
                "process_open_fds",
                "Number of open file descriptors.",
                // One of them reads this folder.
                open.saturating_sub(1) as f64,
            ),
        ] {
            self.add(name, help, &[], value);
        }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, (help, samples)) in &self.0 {
            let kind = if name.ends_with("_total") {
                "counter"
            } else {
                "gauge"
            };
            let _ = write!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}"
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_host_is_this_machine_alone() {
        for (text, address) in [
            ("9101", "127.0.0.1:9101"),
            (":9101", "127.0.0.1:9101"),
            ("localhost:0", "127.0.0.1:0"),
            ("0.0.0.0:9101", "0.0.0.0:9101"),
            ("[::1]:9101", "[::1]:9101"),
        ] {
            assert_eq!(parse_address(text).unwrap().to_string(), address);
        }
        assert!(
            parse_address("robot:9101")
                .unwrap_err()
                .contains("127.0.0.1:9101")
        );
        assert!(parse_address("99999").is_err());
    }

    #[test]
    fn samples_of_one_name_stand_together_with_their_labels_escaped() {
        let mut page = Page::default();
        page.add("x_total", "Xs.", &[("valve", "a\"b\\")], 7.0);
        page.add("open", "Whether it is.", &[], 0.5);
        page.add("x_total", "Xs.", &[("valve", "c"), ("more", "d")], 8.0);
        assert_eq!(
            page.text(),
            "# HELP open Whether it is.\n# TYPE open gauge\nopen 0.5\n\
             # HELP x_total Xs.\n# TYPE x_total counter\n\
             x_total{valve=\"a\\\"b\\\\\"} 7\nx_total{valve=\"c\",more=\"d\"} 8\n"
        );
    }
}
