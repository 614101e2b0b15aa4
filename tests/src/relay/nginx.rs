use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use droidrelay_wire::secret::percent_decode;

use super::{free_ports, launch, Events, Logins, PUBLISHER, VIEWER};
use crate::{system_program, Folder, Process};

const MODULES: [&str; 2] = [
    "/usr/lib/nginx/modules/ngx_rtmp_module.so",
    "/usr/lib64/nginx/modules/ngx_rtmp_module.so",
];

pub(super) struct Nginx {
    pub port: u16,
    callbacks: Callbacks,
}

impl Nginx {
    pub fn new(folder: &Folder, logins: Logins, events: Arc<Events>) -> Self {
        folder.subfolder("logs");
        folder.subfolder("tmp");
        let [port] = free_ports();
        Nginx {
            port,
            callbacks: Callbacks::serve(logins, events),
        }
    }

    pub fn launch(&self, folder: &Folder) -> Result<Process, String> {
        let module = MODULES
            .into_iter()
            .find(|path| Path::new(path).exists())
            .expect("nginx's RTMP module: install libnginx-mod-rtmp");
        let (port, callbacks) = (self.port, self.callbacks.address);
        // One process: a SIGKILL takes all of it. Started as root, the folder must stay readable.
        let config = format!(
            "load_module {module};\n\
             daemon off; master_process off; user root;\n\
             pid nginx.pid; error_log logs/error.log notice;\n\
             events {{ worker_connections 256; }}\n\
             rtmp {{ server {{\n\
               listen 127.0.0.1:{port}; chunk_size 4096; access_log off;\n\
               application live {{\n\
                 live on; wait_key on; wait_video on; notify_method get;\n\
                 on_publish http://{callbacks}/on_publish;\n\
                 on_publish_done http://{callbacks}/on_publish_done;\n\
                 on_play http://{callbacks}/on_play;\n\
               }}\n\
             }} }}\n"
        );
        let mut command = Command::new(system_program("nginx").expect("install nginx"));
        command.arg("-p").arg(folder.path());
        command.arg("-e").arg("logs/error.log");
        command.arg("-c").arg(folder.write("nginx.conf", &config));
        let log = folder.join("logs/error.log");
        let pid_file = folder.join("nginx.pid");
        // Only who could bind its ports writes the file.
        let _ = std::fs::remove_file(&pid_file);
        launch(
            command,
            |_| (),
            &log,
            |process| {
                let pid = std::fs::read_to_string(&pid_file).unwrap_or_default();
                pid.trim() == process.pid().to_string() && shakes_hands(port)
            },
        )
    }
}

/// C0 and C1 are answered with S0 and S1.
fn shakes_hands(port: u16) -> bool {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let mut hello = [0; 1537];
    hello[0] = 3;
    let mut answer = [0; 1537];
    stream.write_all(&hello).is_ok() && stream.read_exact(&mut answer).is_ok() && answer[0] == 3
}

/// The HTTP server that nginx asks about logins and tells what happens.
struct Callbacks {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Callbacks {
    fn serve(logins: Logins, events: Arc<Events>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let ended = Arc::<AtomicBool>::default();
        let end = ended.clone();
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(stream) = stream {
                    answer(stream, &logins, &events);
                }
            }
        });
        Callbacks {
            address,
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Callbacks {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the thread.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream, logins: &Logins, events: &Events) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    // The rest of the head is read, so that closing does not reset the connection.
    lines.take_while(|line| !line.is_empty()).for_each(drop);

    let target = request.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let argument = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let value = pairs.find(|(key, _)| *key == name).map(|(_, value)| value);
        percent_decode(value.unwrap_or_default()).unwrap_or_default()
    };
    let is = |user: &str, password: &str| {
        argument("user") == user && argument("pass") == password && argument("name") == "stream"
    };
    let connection = argument("clientid");
    let allowed = match path {
        "/on_publish" => {
            let allowed = is(PUBLISHER, &logins.publisher);
            if allowed {
                events.published(&connection);
            }
            allowed
        }
        "/on_publish_done" => {
            events.ended(&connection);
            true
        }
        "/on_play" => is(VIEWER, &logins.viewer),
        _ => false,
    };
    let status = if allowed { "200 OK" } else { "403 Forbidden" };
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
}
