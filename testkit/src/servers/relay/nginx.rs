// SPDX-License-Identifier: MPL-2.0

//! nginx with its RTMP module, which asks us about each publisher and reader.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use super::common::{Event, Options, Ports, answers_rtmp};
use crate::{
    certs::{Login, write_private},
    journal::Journal,
    net::http::{Query, Server, request},
    process::{Process, program_of, text_of},
};

const MODULE: &str = "/usr/lib/nginx/modules/ngx_rtmp_module.so";
/// In front of the one that knows no TLS.
const TLS_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Answers nginx as MediaMTX decides by itself: the publisher publishes, the viewer reads.
pub fn callbacks(
    publisher: &Login,
    viewer: &Login,
    events: &Journal<Event>,
    questions: &Journal<Query>,
) -> Result<Server> {
    let (publisher, viewer, events) = (publisher.clone(), viewer.clone(), events.clone());
    let questions = questions.clone();
    Server::start(move |query| {
        questions.push(query.clone());
        let may =
            |login: &Login| query.get("user") == login.user && query.get("pass") == login.password;
        let event = match query.path.as_str() {
            "/publish" if may(&publisher) => Event::Published,
            "/publish" => Event::PublishRefused,
            "/play" if may(&viewer) => Event::Reader,
            "/play" => Event::ReaderRefused,
            _ => Event::Unpublished,
        };
        events.push(event);
        match event {
            Event::PublishRefused | Event::ReaderRefused => 403,
            _ => 200,
        }
    })
}

pub fn launch(
    folder: &Path,
    ports: Ports,
    options: &Options,
    callbacks: SocketAddr,
) -> Result<Process> {
    ensure!(
        Path::new(MODULE).exists(),
        "{MODULE} not found: apt-get install libnginx-mod-rtmp"
    );
    let here = text_of(folder)?;
    let (load_tls, tls) = match &options.tls {
        None => (String::new(), String::new()),
        Some(identity) => {
            ensure!(
                Path::new(TLS_MODULE).exists(),
                "{TLS_MODULE} not found: apt-get install libnginx-mod-stream"
            );
            identity.write(folder, "server")?;
            let server = format!(
                "stream {{ server {{ listen 127.0.0.1:{} ssl; proxy_pass 127.0.0.1:{};\n\
                 ssl_certificate {here}/server.pem; ssl_certificate_key {here}/server.key;\n\
                 }} }}\n",
                ports.rtmps, ports.rtmp
            );
            (format!("load_module {TLS_MODULE};\n"), server)
        }
    };
    // A publisher counts as idle only after its first frame: one that is lost before is found by
    // pings alone.
    let (host, ping, idle) = match options.far {
        true => (
            "0.0.0.0",
            "ping 3s; ping_timeout 2s;",
            "drop_idle_publisher 5s;",
        ),
        false => ("127.0.0.1", "", ""),
    };
    let (wait_key, on_publish) = match options.raw {
        true => ("off", String::new()),
        false => ("on", format!("on_publish http://{callbacks}/publish;")),
    };
    // One process: nothing outlives it, and all streams are in it.
    let config = format!(
        "load_module {MODULE};\n{load_tls}\
         daemon off; master_process off;\n\
         pid {here}/nginx.pid; error_log stderr notice;\n\
         events {{ worker_connections 256; }}\n\
         rtmp {{ server {{\n\
           listen {host}:{port}; {ping} chunk_size 4096; access_log off;\n\
           application live {{\n\
             live on; {idle} wait_key {wait_key}; wait_video on; notify_method get;\n\
             {on_publish}\n\
             on_publish_done http://{callbacks}/publish_done;\n\
             on_play http://{callbacks}/play;\n\
           }}\n\
         }} }}\n\
         {tls}\
         http {{\n\
           access_log off;\n\
           client_body_temp_path {here}/body; proxy_temp_path {here}/proxy;\n\
           fastcgi_temp_path {here}/fastcgi; uwsgi_temp_path {here}/uwsgi;\n\
           scgi_temp_path {here}/scgi;\n\
           server {{ listen 127.0.0.1:{stat}; location / {{ rtmp_stat all; }} }}\n\
         }}\n",
        port = ports.rtmp,
        stat = ports.other,
    );
    write_private(folder, "nginx.conf", &config)?;
    fs::create_dir_all(folder.join("logs"))?;
    let mut command = Command::new(program_of("nginx", "nginx libnginx-mod-rtmp")?);
    command
        .args(["-e", "stderr", "-c", "nginx.conf", "-p"])
        .arg(folder);
    let mut process = Process::spawn("nginx", &mut command)?;
    process.wait_ready(|| answers_rtmp(ports.rtmp))?;
    Ok(process)
}

/// Publishers and readers of all streams.
pub fn clients(ports: Ports) -> Result<usize> {
    let address = SocketAddr::from(([127, 0, 0, 1], ports.other));
    let stat = request(address, "GET", "/", "")?.body;
    let live = stat.split("</live>").next().unwrap_or_default();
    let (_, count) = live.rsplit_once("<nclients>").context("no <nclients>")?;
    let (count, _) = count.split_once('<').context("no </nclients>")?;
    Ok(count.parse()?)
}
