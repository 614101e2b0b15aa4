// SPDX-License-Identifier: MPL-2.0

//! Small files that a setting names.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use zeroize::Zeroizing;

/// Reads a regular file of at most `most` bytes; wiped when dropped. What is no such file is
/// refused without waiting for it (a FIFO has no end, a device may have none).
pub fn read_regular(path: &Path, most: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = fs::OpenOptions::new()
        .read(true)
        // A FIFO would be waited for.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let about = file.metadata()?;
    let refused = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if !about.is_file() {
        return refused("it is not a regular file".into());
    }
    // At once in one piece: what a growing buffer leaves behind would not be wiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(about.len().min(most) as usize + 1));
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return refused(format!("it is larger than {most} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_is_no_regular_file_or_too_large_is_refused_at_once() {
        let folder = std::env::temp_dir().join(format!("droidrelay-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let fifo = folder.join("fifo");
        assert!(
            Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .unwrap()
                .success()
        );
        for path in [fifo.as_path(), Path::new("/dev/zero"), folder.as_path()] {
            let error = read_regular(path, 10).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
        let file = folder.join("file");
        fs::write(&file, "0123456789").unwrap();
        assert_eq!(read_regular(&file, 10).unwrap().as_slice(), b"0123456789");
        let error = read_regular(&file, 9).unwrap_err().to_string();
        assert!(error.contains("9 bytes"), "{error}");
        fs::remove_dir_all(folder).unwrap();
    }
}
