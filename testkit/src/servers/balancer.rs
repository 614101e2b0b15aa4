// SPDX-License-Identifier: MPL-2.0

//! nginx in front of several servers, as a load balancer.

use std::{fs, net::TcpStream, path::Path, process::Command};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::{
    certs::write_private,
    process::{Process, free_port, on_free_ports, program_of, text_of},
};

const TCP_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// One port of the balancer, and the ports on loopback behind it.
pub enum Way {
    /// Every TCP connection to the first that takes it.
    First(Vec<u16>),
    /// Every HTTP request to the next.
    RoundRobin(Vec<u16>),
}

pub struct Balancer {
    process: Process,
    ports: Vec<u16>,
    _folder: TempDir,
}

impl Balancer {
    pub fn start(ways: &[Way]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("balancer-").tempdir()?;
        let (process, ports) = on_free_ports(|| {
            let ports: Vec<u16> = ways.iter().map(|_| free_port()).collect::<Result<_>>()?;
            Ok((launch(folder.path(), ways, &ports)?, ports))
        })?;
        Ok(Balancer {
            process,
            ports,
            _folder: folder,
        })
    }

    /// Where the way of this number begins.
    pub fn port(&self, way: usize) -> u16 {
        self.ports[way]
    }

    pub fn text(&self) -> String {
        self.process.text()
    }
}

fn launch(folder: &Path, ways: &[Way], ports: &[u16]) -> Result<Process> {
    ensure!(
        Path::new(TCP_MODULE).exists(),
        "{TCP_MODULE} not found: apt-get install libnginx-mod-stream"
    );
    let here = text_of(folder)?;
    let (mut tcp, mut http) = (String::new(), String::new());
    for (way, port) in ways.iter().zip(ports) {
        let listen = format!("listen 127.0.0.1:{port};");
        match way {
            Way::First(servers) => {
                let servers = servers.iter().enumerate().map(|(place, server)| {
                    let backup = if place == 0 { "" } else { " backup" };
                    format!("server 127.0.0.1:{server} max_fails=1 fail_timeout=1s{backup}; ")
                });
                tcp += &format!(
                    "upstream w{port} {{ {} }}\n\
                     server {{ {listen} proxy_pass w{port}; proxy_connect_timeout 1s; tcp_nodelay on; }}\n",
                    servers.collect::<String>()
                );
            }
            Way::RoundRobin(servers) => {
                let servers = servers.iter();
                let servers = servers.map(|server| format!("server 127.0.0.1:{server}; "));
                // Event streams and long polls: passed on as they come, for as long as they take.
                http += &format!(
                    "upstream w{port} {{ {} }}\n\
                     server {{ {listen} location / {{ proxy_pass http://w{port}; proxy_http_version 1.1;\n\
                     proxy_set_header Connection \"\"; proxy_set_header Host $http_host;\n\
                     proxy_set_header X-Forwarded-For $remote_addr;\n\
                     proxy_buffering off; proxy_read_timeout 1h; }} }}\n",
                    servers.collect::<String>()
                );
            }
        }
    }
    let config = format!(
        "load_module {TCP_MODULE};\n\
         daemon off; master_process off;\n\
         pid {here}/nginx.pid; error_log stderr notice;\n\
         events {{ worker_connections 512; }}\n\
         stream {{\n{tcp}}}\n\
         http {{\n\
           access_log off;\n\
           client_body_temp_path {here}/body; proxy_temp_path {here}/proxy;\n\
           fastcgi_temp_path {here}/fastcgi; uwsgi_temp_path {here}/uwsgi;\n\
           scgi_temp_path {here}/scgi;\n\
         {http}}}\n"
    );
    write_private(folder, "nginx.conf", &config)?;
    fs::create_dir_all(folder.join("logs"))?;
    let mut command = Command::new(program_of("nginx", "nginx")?);
    command
        .args(["-e", "stderr", "-c", "nginx.conf", "-p"])
        .arg(folder);
    let mut process = Process::spawn("balancer", &mut command)?;
    process.wait_ready(|| {
        let mut ports = ports.iter();
        ports.all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok())
    })?;
    Ok(process)
}
