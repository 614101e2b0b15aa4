// SPDX-License-Identifier: MPL-2.0

//! From a server's name to a TCP connection.

use std::{fmt, io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
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
    /// At least one has not answered within this time.
    Timeout(Duration),
}

impl ConnectError {
    /// Whether this machine knows no way to any of the addresses.
    pub fn is_no_network(&self) -> bool {
        let unreachable =
            |(_, err): &(SocketAddr, io::Error)| err.kind() == io::ErrorKind::NetworkUnreachable;
        match self {
            ConnectError::Failed(failures) => {
                !failures.is_empty() && failures.iter().all(unreachable)
            }
            ConnectError::Timeout(_) => false,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Failed(failures) => {
                let remedy = match self.is_no_network() {
                    true => "this machine has no network",
                    false => "is the server running, and the port right?",
                };
                let failures = failures.iter().map(|(at, err)| format!("{at}: {err}"));
                let failures = failures.collect::<Vec<_>>().join(", ");
                write!(f, "{failures}; {remedy}")
            }
            ConnectError::Timeout(patience) => write!(
                f,
                "no answer within {} s; a firewall, or the network is down",
                patience.as_secs_f64()
            ),
        }
    }
}

impl std::error::Error for ConnectError {}

/// Tries the addresses in order, each a moment after the one before, and takes the first that
/// answers. What is written does not wait for acknowledgements (`TCP_NODELAY`).
pub async fn connect(
    addresses: &[SocketAddr],
    patience: Duration,
) -> Result<TcpStream, ConnectError> {
    let deadline = Instant::now() + patience;
    let mut attempts = JoinSet::new();
    for (n, address) in (0u32..).zip(addresses.iter().copied()) {
        attempts.spawn(async move {
            sleep(NEXT_ADDRESS * n).await;
            let connected = TcpStream::connect(address).await;
            connected
                .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
                .map_err(|err| (address, err))
        });
    }
    let mut failures = Vec::new();
    loop {
        match timeout_at(deadline, attempts.join_next()).await {
            Err(_) => return Err(ConnectError::Timeout(patience)),
            Ok(None) => return Err(ConnectError::Failed(failures)),
            Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
            Ok(Some(Ok(Err(failure)))) => failures.push(failure),
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
    fn an_address_is_looked_up_as_itself_and_a_name_that_is_none_is_named() {
        let found = runtime().block_on(look_up("::1", 80, Duration::from_secs(3)));
        assert_eq!(found.unwrap(), ["[::1]:80".parse().unwrap()]);
        let error = runtime()
            .block_on(look_up("no name", 80, Duration::from_secs(3)))
            .unwrap_err();
        assert!(error.contains("cannot look up \"no name\""), "{error}");
    }
}
