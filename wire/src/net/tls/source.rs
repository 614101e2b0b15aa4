// SPDX-License-Identifier: MPL-2.0

//! A TLS client whose files may be replaced while it is used.

use std::{
    env, fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{client::Client, files::TlsFiles};

/// Where Debian keeps the system's trust store.
const SYSTEM_STORE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Gives a client as its files are now; they are read again when one of them has changed.
#[derive(Clone)]
pub struct Source {
    files: TlsFiles,
    last: Arc<Mutex<Option<Last>>>,
}

/// The files as they were when the client was made of them.
type Last = (Vec<Stamp>, Client);

/// Tells one content of a file from the next.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    /// Inode, length, and time of the last change in seconds and nanoseconds; None: no such file.
    content: Option<(u64, u64, i64, i64)>,
}

impl Stamp {
    fn of(path: &Path) -> Self {
        // Of what a link leads to.
        let content = fs::metadata(path).ok();
        Stamp {
            path: path.to_owned(),
            content: content.map(|is| (is.ino(), is.len(), is.mtime(), is.mtime_nsec())),
        }
    }
}

impl Source {
    /// Reads the files. The error names the file and the remedy.
    pub fn new(files: TlsFiles) -> Result<Self, String> {
        let source = Source {
            files,
            last: Arc::default(),
        };
        source.client()?;
        Ok(source)
    }

    /// What it was made of.
    pub fn files(&self) -> &TlsFiles {
        &self.files
    }

    /// A client as the files are now. It blocks while they are read.
    pub fn client(&self) -> Result<Client, String> {
        let stamps = self.stamps();
        if let Some((known, client)) = &*self.last.lock()
            && *known == stamps
        {
            return Ok(client.clone());
        }
        let client = Client::new(&self.files)?;
        *self.last.lock() = Some((stamps, client.clone()));
        Ok(client)
    }

    fn stamps(&self) -> Vec<Stamp> {
        let TlsFiles {
            ca_file,
            cert_file,
            key_file,
            ..
        } = &self.files;
        let trust = ca_file.clone().unwrap_or_else(|| {
            env::var_os("SSL_CERT_FILE").map_or_else(|| SYSTEM_STORE.into(), PathBuf::from)
        });
        [Some(&trust), cert_file.as_ref(), key_file.as_ref()]
            .into_iter()
            .flatten()
            .map(|path| Stamp::of(path))
            .collect()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

#[cfg(all(test, feature = "tls"))]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBcDCCARWgAwIBAgIUUffYNm76/KDm+OZ10i4jpQaTOmwwCgYIKoZIzj0EAwIw\n\
        DDEKMAgGA1UEAwwBaDAgFw0yNjExMjgwNTU5NThaGA8yMTI2MTEwNDA1NTk1OFow\n\
        DDEKMAgGA1UEAwwBaDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNDGXWOxPIBZ\n\
        UnNZi5SIVH6nW+kHyfLfIfImpovy4OSZ6q1W6NKGRV2PCHfFRSgE3Cv168gPL1DM\n\
        MNx7rHWTL3OjUzBRMB0GA1UdDgQWBBQ2+bbPI5QTGTJPZ4dwSBTt4iiIDzAfBgNV\n\
        HSMEGDAWgBQ2+bbPI5QTGTJPZ4dwSBTt4iiIDzAPBgNVHRMBAf8EBTADAQH/MAoG\n\
        CCqGSM49BAMCA0kAMEYCIQDBvLJs7UCK+93o/EkDpe+/j56qv3bqhZ5Lg0LGbNJV\n\
        qgIhANpDOC6RhliUHg6t4gsuf48TWaB9pBjU4sMLzfW4YB6D\n\
        -----END CERTIFICATE-----";

    #[test]
    fn a_file_that_was_replaced_is_read_anew_and_one_that_is_bad_is_named() {
        let folder = env::temp_dir().join(format!("droidrelay-source-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let ca_file = folder.join("ca.pem");
        let write = |text: &str| {
            // As programs do that renew certificates: another file in its place.
            let next = folder.join("next");
            fs::write(&next, text).unwrap();
            fs::rename(next, &ca_file).unwrap();
        };
        write(CERTIFICATE);
        let source = Source::new(TlsFiles {
            ca_file: Some(ca_file.clone()),
            ..TlsFiles::default()
        })
        .unwrap();
        let first = source.client().unwrap();
        assert!(first.is_same(&source.client().unwrap()), "not read again");
        write(CERTIFICATE);
        let second = source.client().unwrap();
        assert!(!first.is_same(&second));
        write("none");
        let error = source.client().err().unwrap();
        assert!(error.contains("ca.pem"), "{error}");
        write(CERTIFICATE);
        assert!(source.client().is_ok());
        fs::remove_dir_all(folder).unwrap();
    }
}
