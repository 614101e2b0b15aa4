// SPDX-License-Identifier: MPL-2.0

//! How the process's allocator is set for a pipeline that is idle most of the time.

/// Lets glibc's allocator give back what is free at the end of each of its arenas, beyond 128 KiB.
/// By itself it keeps twice the largest block that was ever freed: megabytes of pictures in each.
/// What the environment has chosen stays.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    {
        const KEPT: libc::c_int = 128 * 1024;
        let tunables = std::env::var("GLIBC_TUNABLES").unwrap_or_default();
        if std::env::var_os("MALLOC_TRIM_THRESHOLD_").is_some()
            || tunables.contains("malloc.trim_threshold")
        {
            return;
        }
        // SAFETY: sets a number of the allocator's, in its own lock.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT) };
    }
}
