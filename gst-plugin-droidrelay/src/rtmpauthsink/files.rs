// SPDX-License-Identifier: MPL-2.0

//! Reads the files that the settings name, away from the I/O thread and with a deadline.

use tokio::{runtime::Handle, task::JoinHandle, time::timeout};

use super::{
    session::Target,
    settings::{Settings, TlsCache},
};
use crate::element::files::{DEADLINE, too_long, within};

type Read = (Result<Target, String>, TlsCache);

fn read(settings: &Settings, mut tls: TlsCache) -> Read {
    (settings.target(&mut tls), tls)
}

/// Checks settings that nobody waits for yet; what was read of them is read faster the next time.
pub fn check(io: &Handle, settings: Settings) -> Result<(Target, FilesReader), String> {
    let files = settings.files();
    let (target, tls) = within(io, &files, move || read(&settings, TlsCache::default()))?;
    let reader = FilesReader { tls, reading: None };
    Ok((target?, reader))
}

/// Has one read under way at most.
#[derive(Default)]
pub struct FilesReader {
    tls: TlsCache,
    reading: Option<JoinHandle<Read>>,
}

impl FilesReader {
    pub async fn target(&mut self, settings: Settings) -> Result<Target, String> {
        let files = settings.files();
        if let Some(old) = self.reading.take() {
            // Of settings that may have changed.
            self.tls = self.finish(old, &files).await?.1;
        }
        let tls = std::mem::take(&mut self.tls);
        let reading = tokio::task::spawn_blocking(move || read(&settings, tls));
        let (target, tls) = self.finish(reading, &files).await?;
        self.tls = tls;
        target
    }

    async fn finish(&mut self, mut reading: JoinHandle<Read>, files: &str) -> Result<Read, String> {
        match timeout(DEADLINE, &mut reading).await {
            Ok(read) => read.map_err(|_| format!("cannot read {files}")),
            Err(_) => {
                self.reading = Some(reading);
                Err(too_long(files))
            }
        }
    }
}
