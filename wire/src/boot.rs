// SPDX-License-Identifier: MPL-2.0

//! Which start of the machine this is.

use std::fs;

/// Another one after each boot: it names what begins anew then, as the kernel's clock does.
/// Empty where the kernel does not tell.
pub fn id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}
