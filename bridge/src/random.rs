// SPDX-License-Identifier: MPL-2.0

//! Random bytes, and bytes as text.

pub use droidrelay_wire::words::enroll::hex;
use ring::rand::{SecureRandom, SystemRandom};

pub fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| "the system gives no random numbers")?;
    Ok(bytes)
}
