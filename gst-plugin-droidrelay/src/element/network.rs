// SPDX-License-Identifier: MPL-2.0

//! Tells when this machine's network has changed for the better: a link, an address or a route has
//! come (rtnetlink(7)).

use std::{io, os::fd::AsRawFd, sync::Arc};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{io::unix::AsyncFd, sync::Notify};

const GROUPS: libc::c_int = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;
/// Length of a message's header, and where its type is.
const HEADER: usize = size_of::<libc::nlmsghdr>();
const TYPE: usize = 4;
/// Where a link's flags are.
const LINK_FLAGS: usize = HEADER + 8;

/// Notifies whoever waits for `changed`, as long as it runs; ends at once where the system does not
/// tell.
pub async fn watch(changed: Arc<Notify>) -> io::Result<()> {
    // SAFETY: a socket has one descriptor, which is open for as long as the socket lives.
    let socket = unsafe { AsyncFd::register(subscribe()?) }?;
    let mut buffer = [0; 8192];
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| {
            let (descriptor, length) = (socket.as_raw_fd(), buffer.len());
            // SAFETY: the descriptor is open for as long as `socket` lives, and no more than the
            // buffer's length is written to it.
            let count = unsafe { libc::recv(descriptor, buffer.as_mut_ptr().cast(), length, 0) };
            usize::try_from(count).map_err(|_| io::Error::last_os_error())
        });
        match received {
            Ok(Ok(count)) if !is_better(&buffer[..count]) => {}
            // More has happened than there was room for.
            Ok(Ok(_)) => changed.notify_waiters(),
            Ok(Err(err)) if err.raw_os_error() == Some(libc::ENOBUFS) => changed.notify_waiters(),
            Ok(Err(err)) => return Err(err),
            // It was not ready after all.
            Err(_) => {}
        }
    }
}

fn subscribe() -> io::Result<Socket> {
    let protocol = Some(Protocol::from(libc::NETLINK_ROUTE));
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, protocol)?;
    // SAFETY: the storage is zeroed, and larger than the address that is written to its beginning.
    let (_, address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = storage.cast::<libc::sockaddr_nl>();
            (*address).nl_family = libc::AF_NETLINK as libc::sa_family_t;
            (*address).nl_groups = GROUPS as u32;
            *length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
            Ok(())
        })
    }?;
    socket.bind(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Whether one of these messages says that something has come up.
fn is_better(mut messages: &[u8]) -> bool {
    let number = |at: usize, bytes: &[u8]| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    while let Some(length) = number(0, messages) {
        let length = length as usize;
        let Some(message) = messages.get(..length).filter(|_| length >= HEADER) else {
            return false;
        };
        let kind = u16::from_ne_bytes([message[TYPE], message[TYPE + 1]]);
        let is_up = || {
            let flags = number(LINK_FLAGS, message).unwrap_or_default();
            flags & libc::IFF_RUNNING as u32 != 0
        };
        match kind {
            libc::RTM_NEWADDR | libc::RTM_NEWROUTE => return true,
            libc::RTM_NEWLINK if is_up() => return true,
            _ => {}
        }
        messages = messages
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use droidrelay_testkit::{journal::DEADLINE, net::netns::isolated};

    use super::*;

    fn message(kind: u16, flags: libc::c_int) -> Vec<u8> {
        let mut bytes = 32_u32.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(LINK_FLAGS, 0);
        bytes.extend((flags as u32).to_ne_bytes());
        bytes.resize(32, 0);
        bytes
    }

    #[test]
    fn what_comes_is_better_and_what_goes_is_not() {
        for (kind, flags, better) in [
            (libc::RTM_NEWADDR, 0, true),
            (libc::RTM_NEWROUTE, 0, true),
            (libc::RTM_NEWLINK, libc::IFF_UP | libc::IFF_RUNNING, true),
            (libc::RTM_NEWLINK, libc::IFF_UP, false),
            (libc::RTM_DELADDR, 0, false),
            (libc::RTM_DELROUTE, 0, false),
        ] {
            let one = message(kind, flags);
            assert_eq!(is_better(&one), better, "{kind}");
            let two = [message(libc::RTM_DELROUTE, 0), one].concat();
            assert_eq!(is_better(&two), better, "{kind}");
        }
    }

    #[test]
    fn what_the_kernel_does_not_send_is_no_news() {
        for length in [0_u32, 1, 15, 16, 33, u32::MAX] {
            let mut bytes = message(libc::RTM_NEWADDR, 0);
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            is_better(&bytes);
            is_better(&bytes[..5]);
        }
    }

    #[test]
    fn a_new_address_is_noticed() {
        isolated(|_| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let changed = Arc::new(Notify::new());
                let noticed = changed.notified();
                tokio::pin!(noticed);
                noticed.as_mut().enable();
                tokio::spawn(watch(changed.clone()));
                // Until it listens.
                tokio::task::yield_now().await;
                let added = Command::new("ip")
                    .args(["address", "add", "192.0.2.77/32", "dev", "lo"])
                    .status();
                assert!(added.unwrap().success());
                tokio::time::timeout(DEADLINE, noticed).await.unwrap();
            });
        });
    }
}
