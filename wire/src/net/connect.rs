// SPDX-License-Identifier: MPL-2.0

//! From a server's name to a TCP connection.

use std::{collections::VecDeque, fmt, io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

/// An address that does not answer is given this long before the next one is tried beside it
/// (RFC 8305, section 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// The addresses of `host`; at least one. The name server keeps what it finds later than
/// `patience`.
pub async fn look_up(host: &str, port: u16, patience: Duration) -> Result<Vec<SocketAddr>, String> {
    const REMEDY: &str = "check the name and this machine's name server (DNS)";
    let found = timeout(patience, lookup_host((host, port)))
        .await
        .map_err(|_| {
            format!(
                "cannot look up {host:?}: no name server (DNS) has answered within {} s",
                patience.as_secs_f64()
            )
        })?
        .map_err(|err| format!("cannot look up {host:?}: {err}; {REMEDY}"))?;
    let addresses: Vec<_> = found.collect();
    if addresses.is_empty() {
        return Err(format!("{host:?} has no address: {REMEDY}"));
    }
    Ok(addresses)
}

/// Why none of a server's addresses took a connection.
#[derive(Debug)]
pub enum ConnectError {
    /// Each of them failed.
    Failed(Vec<(SocketAddr, io::Error)>),
    /// At least one has not answered in time.
    Timeout {
        patience: Duration,
        silent: Vec<SocketAddr>,
        failed: Vec<(SocketAddr, io::Error)>,
    },
}

impl ConnectError {
    /// Whether there is no way to any of the addresses: nothing has reached them.
    pub fn is_unreachable(&self) -> bool {
        use io::ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable};
        let is_unreachable = |(_, err): &(SocketAddr, io::Error)| {
            matches!(
                err.kind(),
                HostUnreachable | NetworkDown | NetworkUnreachable
            )
        };
        match self {
            ConnectError::Failed(failures) => {
                !failures.is_empty() && failures.iter().all(is_unreachable)
            }
            ConnectError::Timeout { .. } => false,
        }
    }
}

/// Addresses with what became of them.
struct Failures<'a>(&'a [(SocketAddr, io::Error)]);

impl fmt::Display for Failures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failures = self.0.iter().map(|(at, err)| format!("{at}: {err}"));
        f.write_str(&failures.collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Failed(failures) => {
                let remedy = match self.is_unreachable() {
                    true => "no way there: is this machine's network up?",
                    false => "is the server running, and the port right?",
                };
                write!(f, "{}; {remedy}", Failures(failures))
            }
            ConnectError::Timeout {
                patience,
                silent,
                failed,
            } => {
                let silent: Vec<_> = silent.iter().map(SocketAddr::to_string).collect();
                write!(
                    f,
                    "no answer from {} within {} s",
                    silent.join(", "),
                    patience.as_secs_f64()
                )?;
                if !failed.is_empty() {
                    write!(f, ", {}", Failures(failed))?;
                }
                f.write_str("; a firewall, or the network is down")
            }
        }
    }
}

impl std::error::Error for ConnectError {}

/// The addresses in their order, but alternating between IPv6 and IPv4 (RFC 8305, section 4).
fn interleaved(addresses: &[SocketAddr]) -> VecDeque<SocketAddr> {
    let Some(first) = addresses.first() else {
        return VecDeque::new();
    };
    let (mut own, mut other): (VecDeque<SocketAddr>, VecDeque<SocketAddr>) = addresses
        .iter()
        .copied()
        .partition(|address| address.is_ipv6() == first.is_ipv6());
    let mut sorted = VecDeque::new();
    while !own.is_empty() || !other.is_empty() {
        sorted.extend(own.pop_front());
        sorted.extend(other.pop_front());
    }
    sorted
}

/// Tries the addresses side by side (RFC 8305): each a moment after the one before, or as soon as
/// that has failed, and takes the first that answers. What is written does not wait for
/// acknowledgements (`TCP_NODELAY`).
pub async fn connect(
    addresses: &[SocketAddr],
    patience: Duration,
) -> Result<TcpStream, ConnectError> {
    let deadline = Instant::now() + patience;
    let mut attempts = JoinSet::new();
    let mut next = interleaved(addresses);
    let mut silent = Vec::new();
    let mut failed = Vec::new();
    loop {
        if let Some(address) = next.pop_front() {
            silent.push(address);
            attempts.spawn(async move {
                let connected = TcpStream::connect(address).await;
                connected
                    .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
                    .map_err(|err| (address, err))
            });
        }
        let wake = match next.is_empty() {
            true => deadline,
            false => deadline.min(Instant::now() + NEXT_ADDRESS),
        };
        match timeout_at(wake, attempts.join_next()).await {
            Err(_) if wake < deadline => {}
            Err(_) => {
                return Err(ConnectError::Timeout {
                    patience,
                    silent,
                    failed,
                });
            }
            Ok(None) => return Err(ConnectError::Failed(failed)),
            Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
            Ok(Some(Ok(Err((address, err))))) => {
                silent.retain(|other| *other != address);
                failed.push((address, err));
            }
            // None is aborted, and none panics.
            Ok(Some(Err(_))) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    fn closed() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    }

    #[test]
    fn an_address_that_refuses_does_not_cost_the_next_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        let stream = runtime()
            .block_on(connect(&[closed(), open], Duration::from_secs(10)))
            .unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open);
        assert!(stream.nodelay().unwrap());
    }

    #[test]
    fn each_address_that_refuses_is_named() {
        let (one, two) = (closed(), closed());
        let error = runtime()
            .block_on(connect(&[one, two], Duration::from_secs(10)))
            .unwrap_err();
        assert!(matches!(error, ConnectError::Failed(_)), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&one.to_string()) && text.contains(&two.to_string()),
            "{text}"
        );
    }

    #[test]
    fn what_cannot_be_reached_is_told_from_what_refuses() {
        let failed = |kinds: &[io::ErrorKind]| {
            let failures = kinds.iter().map(|kind| (closed(), (*kind).into()));
            ConnectError::Failed(failures.collect())
        };
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable};
        let all = failed(&[HostUnreachable, NetworkDown, NetworkUnreachable]);
        assert!(all.is_unreachable());
        assert!(all.to_string().contains("network up"), "{all}");
        let one = failed(&[NetworkUnreachable, ConnectionRefused]);
        assert!(!one.is_unreachable());
        assert!(one.to_string().contains("server running"), "{one}");
        assert!(!failed(&[]).is_unreachable());
    }

    #[test]
    fn many_addresses_that_refuse_cost_no_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut addresses: Vec<_> = (0..40).map(|_| closed()).collect();
        addresses.push(listener.local_addr().unwrap());
        // With a pause for each it would take ten.
        runtime()
            .block_on(connect(&addresses, Duration::from_secs(5)))
            .unwrap();
    }

    #[test]
    fn addresses_alternate_between_the_families() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let [a, b, c, d] = ["[::1]:1", "[::2]:1", "1.1.1.1:1", "1.1.1.2:1"].map(address);
        assert_eq!(interleaved(&[a, b, c, d]), [a, c, b, d]);
        assert_eq!(interleaved(&[c, a, b]), [c, a, b]);
        assert!(interleaved(&[]).is_empty());
    }

    #[test]
    fn an_address_is_looked_up_as_itself_and_a_name_that_is_none_is_named() {
        let found = runtime().block_on(look_up("::1", 80, Duration::from_secs(3)));
        assert_eq!(found.unwrap(), ["[::1]:80".parse().unwrap()]);
        let error = runtime()
            .block_on(look_up("no name", 80, Duration::from_secs(3)))
            .unwrap_err();
        assert!(error.contains("cannot look up \"no name\""), "{error}");
    }
}
