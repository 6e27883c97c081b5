//! The mount table, read from /proc/self/mountinfo (proc_pid_mountinfo(5)).
//!
//! Pure: text in, entries out. A line that cannot be read is an error, because a mount that is overlooked could
//! be somebody's data.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::LOOP_MAJOR;

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// The driver.
    pub major: u32,
    /// The device.
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl DeviceNumber {
    /// The number in a `st_dev` or `st_rdev`.
    #[must_use]
    pub fn of_stat(device: libc::dev_t) -> Self {
        Self { major: libc::major(device), minor: libc::minor(device) }
    }

    /// The number of a loop device.
    #[must_use]
    pub const fn of_loop(number: u32) -> Self {
        Self { major: LOOP_MAJOR, minor: number }
    }

    /// N, when this is /dev/loopN.
    #[must_use]
    pub const fn loop_number(self) -> Option<u32> {
        if self.major == LOOP_MAJOR { Some(self.minor) } else { None }
    }
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The mount's id: another mount at the same path has another one.
    pub id: u64,
    /// The filesystem's device number.
    pub device: DeviceNumber,
    /// Which directory (or file) of the filesystem is mounted.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// Attributes of this mount: `ro`, `nosuid` ….
    pub options: Vec<String>,
    /// Mounts made below it appear in other mount namespaces.
    pub shared: bool,
    /// The filesystem's type.
    pub filesystem: String,
    /// Its device or name.
    pub source: OsString,
    /// The filesystem itself is read-only.
    pub filesystem_read_only: bool,
    /// The kernel has stopped writing to the filesystem after an error, and says so here (ext4 does, since Linux 6.15).
    pub filesystem_stopped: bool,
}

impl MountEntry {
    /// The mount has this attribute.
    #[must_use]
    pub fn has_option(&self, name: &str) -> bool {
        self.options.iter().any(|option| option == name)
    }

    /// Writing through this mount is impossible.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.has_option("ro") || self.filesystem_read_only
    }

    /// N, when what is mounted is the filesystem on /dev/loopN. btrfs shows a device number of its own, so there the
    /// name of the source tells; callers check the device's backing file before they believe either.
    #[must_use]
    pub fn mounted_loop(&self) -> Option<u32> {
        if self.filesystem == "btrfs" {
            return self.source.to_str()?.strip_prefix("/dev/loop")?.parse().ok();
        }
        self.device.loop_number()
    }
}

/// A line of mountinfo that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read line {number} of the mount table: {line:?}")]
pub struct MountTableError {
    number: usize,
    line: String,
}

/// All mounts of a mount namespace, in mount order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountTable {
    entries: Vec<MountEntry>,
    /// The filesystem of /dev, whose device nodes are the real ones.
    dev: Option<DeviceNumber>,
}

impl MountTable {
    /// A table of these entries.
    #[must_use]
    pub fn new(entries: Vec<MountEntry>) -> Self {
        let table = Self { entries, dev: None };
        let dev = table.containing(Path::new("/dev/loop-control")).map(|entry| entry.device);
        Self { dev, ..table }
    }

    /// Reads the text of /proc/self/mountinfo.
    ///
    /// # Errors
    /// A line that is not of the documented form.
    pub fn parse(text: &[u8]) -> Result<Self, MountTableError> {
        let mut entries = Vec::new();
        for (index, line) in text.split(|b| *b == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            entries.push(parse_line(line).ok_or_else(|| MountTableError {
                number: index + 1,
                line: String::from_utf8_lossy(line).chars().take(200).collect(),
            })?);
        }
        Ok(Self::new(entries))
    }

    /// All entries.
    #[must_use = "iterators are lazy"]
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &MountEntry> {
        self.entries.iter()
    }

    /// N, when what an entry mounts is the device node of /dev/loopN itself (a raw block volume). Only nodes of /dev count:
    /// a file named loop0 in anybody's tmpfs is no device.
    #[must_use]
    pub fn bound_loop_node(&self, entry: &MountEntry) -> Option<u32> {
        let name = entry.root.to_str()?.strip_prefix("/loop")?;
        if Some(entry.device) == self.dev { name.parse().ok() } else { None }
    }

    /// N, when what an entry mounts is /dev/loopN in either way: its filesystem, or its device node.
    #[must_use]
    pub fn shown_loop(&self, entry: &MountEntry) -> Option<u32> {
        entry.mounted_loop().or_else(|| self.bound_loop_node(entry))
    }

    /// N, when a raw block volume's device node is what is visible at exactly this path.
    #[must_use]
    pub fn loop_node_at(&self, path: &Path) -> Option<u32> {
        self.bound_loop_node(self.top_at(path)?)
    }

    /// The mount that is visible at exactly this path: the last one made there.
    #[must_use]
    pub fn top_at(&self, path: &Path) -> Option<&MountEntry> {
        self.entries.iter().rev().find(|entry| entry.mount_point == path)
    }

    /// The mount that a path lies on.
    #[must_use]
    pub fn containing(&self, path: &Path) -> Option<&MountEntry> {
        let depth = |entry: &&MountEntry| entry.mount_point.components().count();
        // Of equals the last one, which `max_by_key` answers.
        self.entries.iter().filter(|entry| path.starts_with(&entry.mount_point)).max_by_key(depth)
    }
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let _parent_id = fields.next()?;
    let device = parse_device(fields.next()?)?;
    let root = unescape(fields.next()?);
    let mount_point = unescape(fields.next()?);
    let options = parse_options(fields.next()?);
    let mut shared = false;
    loop {
        match fields.next()? {
            b"-" => break,
            tag => shared |= tag.starts_with(b"shared:"),
        }
    }
    // A FUSE server may name its type as it likes; that must not stop anybody's teardown.
    let filesystem = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = unescape(fields.next()?);
    let super_options = fields.next().unwrap_or_default();
    let is_on = |name: &[u8]| super_options.split(|b| *b == b',').any(|option| option == name);
    Some(MountEntry {
        id,
        device,
        root: root.into(),
        mount_point: mount_point.into(),
        options,
        shared,
        filesystem,
        source,
        filesystem_read_only: is_on(b"ro"),
        filesystem_stopped: is_on(b"emergency_ro") || is_on(b"shutdown"),
    })
}

fn parse_device(text: &[u8]) -> Option<DeviceNumber> {
    let (major, minor) = std::str::from_utf8(text).ok()?.split_once(':')?;
    Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

fn parse_options(text: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(text).split(',').map(str::to_owned).collect()
}

/// Space, tab, newline and backslash stand as `\` and three octal digits.
fn unescape(text: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|digits| first == b'\\' && digits.iter().all(|d| matches!(d, b'0'..=b'7')));
        let code =
            octal.map(|digits| digits.iter().fold(0_u32, |sum, d| sum * 8 + u32::from(d - b'0')));
        if let Some(byte) = code.and_then(|code| u8::try_from(code).ok()) {
            plain.push(byte);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            plain.push(first);
            rest = tail;
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use proptest::prelude::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 22 0:5 / /dev rw,relatime - devtmpfs devtmpfs rw,size=4k
40 22 7:3 / /a/stag\\040ing ro,noatime master:3 - xfs /dev/loop3 ro,attr2
41 22 254:0 /pool/volumes/k/data /t rw shared:1 - ext4 /dev/vda rw
42 30 0:5 /loop7 /t/block rw - devtmpfs devtmpfs rw
43 41 0:40 / /t rw - tmpfs none
45 22 0:42 /loop0 /e rw - tmpfs \xff rw
44 22 0:41 / /b rw - btrfs /dev/loop9 rw,subvolid=5,subvol=/
";

    #[test]
    fn a_table_is_read() {
        let table = MountTable::parse(TABLE).unwrap();
        let staged = table.top_at(Path::new("/a/stag ing")).unwrap();
        assert_eq!(staged.mounted_loop(), Some(3));
        assert!(staged.is_read_only() && staged.has_option("noatime") && !staged.shared);
        let block = table.top_at(Path::new("/t/block")).unwrap();
        assert_eq!((table.bound_loop_node(block), block.mounted_loop()), (Some(7), None));
        assert_eq!((table.shown_loop(block), table.shown_loop(staged)), (Some(7), Some(3)));
        assert_eq!(table.loop_node_at(Path::new("/e")), None, "a file in a tmpfs is no device");
        assert_eq!(table.top_at(Path::new("/b")).unwrap().mounted_loop(), Some(9));
        assert_eq!(table.top_at(Path::new("/t")).unwrap().filesystem, "tmpfs");
        assert_eq!(table.containing(Path::new("/t/x")).unwrap().filesystem, "tmpfs");
        assert_eq!(table.containing(Path::new("/tx")).unwrap().mount_point, Path::new("/"));
        assert!(table.top_at(Path::new("/none")).is_none());
    }

    #[test]
    fn a_line_that_cannot_be_read_is_an_error() {
        for line in ["x", "1 2 3 / / rw - ext4 a b", "1 2 0:1 / / rw shared:1"] {
            let text = [TABLE, line.as_bytes()].concat();
            let error = MountTable::parse(&text).unwrap_err();
            assert_eq!(error.number, 9, "{line}");
        }
    }

    #[test]
    fn escapes_are_undone_once() {
        assert_eq!(unescape(br"a\040b\134040\11"), OsStr::new("a b\\040\\11"));
        assert_eq!(unescape(br"\777"), OsStr::new("\\777"));
    }

    /// As kernels print them: with escapes, without optional fields and with several, of every kind of filesystem that has
    /// something special, and with names that somebody chose badly.
    const SEEN: &str = r"21 26 0:19 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
26 1 254:1 / / rw,relatime shared:1 master:7 propagate_from:2 unbindable - ext4 /dev/vda1 rw,errors=remount-ro
36 26 0:31 /containers/a\040b /var/lib/kubelet/pods/x/volumes/a\011tab rw shared:1 - overlay overlay rw,lowerdir=/l1:/l\0542,upperdir=/u
99 26 7:12 / /mnt/new\012line ro,nosymfollow - ext4 /dev/loop12 rw,emergency_ro
100 26 0:44 /vol\134back /mnt/hash\043tag rw - btrfs /dev/loop3 rw,space_cache=v2,subvolid=257,subvol=/vol
101 26 0:45 /../../.. /mnt/gone//deleted rw - fuse.sshfs host:/with\040space rw,user_id=0
102 26 0:46 / /mnt/nosource rw -  none
103 26 0:4 mnt:[4026531840] /run/ns rw shared:9 - nsfs nsfs rw
104 26 8:1048575 / /mnt/\303\244 rw,idmapped - xfs /dev/sda rw,shutdown";

    #[test]
    fn lines_that_kernels_print_are_read() {
        let table = MountTable::parse(SEEN.as_bytes()).unwrap();
        let points: Vec<_> = table.iter().map(|entry| entry.mount_point.as_path()).collect();
        for point in ["/mnt/new\nline", "/mnt/hash#tag", "/mnt/\u{e4}", "/mnt/nosource"] {
            assert!(points.contains(&Path::new(point)), "{points:?}");
        }
        let pod = Path::new("/var/lib/kubelet/pods/x/volumes/a\ttab");
        assert_eq!(table.top_at(pod).unwrap().root, Path::new("/containers/a b"));
        assert!(table.top_at(Path::new("/mnt/new\nline")).unwrap().filesystem_stopped);
        assert_eq!(table.iter().filter(|entry| entry.shared).count(), 4);
    }

    #[test]
    fn an_endless_line_is_told_in_part() {
        let endless = "x".repeat(1 << 20);
        assert!(MountTable::parse(endless.as_bytes()).unwrap_err().to_string().len() < 1000);
        // A path may have 4096 bytes, each of them escaped, and the kernel's options a page.
        let long = "\\040".repeat(4096);
        let line =
            format!("1 2 0:1 / /{long} rw - overlay overlay rw,lowerdir={}", "/l:".repeat(9999));
        let table = MountTable::parse(line.as_bytes()).unwrap();
        assert_eq!(table.iter().next().unwrap().mount_point.as_os_str().len(), 4097);
    }

    /// A name as the kernel prints it.
    fn escaped(name: &[u8]) -> Vec<u8> {
        let byte = |byte: &u8| match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
            byte => vec![*byte],
        };
        name.iter().flat_map(byte).collect()
    }

    proptest! {
        #[test]
        fn rubbish_is_never_a_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _read_or_refused = MountTable::parse(&text);
        }

        #[test]
        fn any_name_is_read_as_it_is(point in "/[^\0]{0,60}", root in proptest::collection::vec(1_u8.., 0..60), source in "[^\0]{1,60}", id: u32, major in 0_u32..4096, minor in 0_u32..(1 << 20)) {
            let line = [
                format!("{id} 1 {major}:{minor} /").as_bytes(),
                &escaped(&root),
                b" ",
                &escaped(point.as_bytes()),
                b" rw,noatime shared:3 - ext4 ",
                &escaped(source.as_bytes()),
                b" ro,data=ordered",
            ]
            .concat();
            let text = [TABLE, &line, b"\n"].concat();
            let table = MountTable::parse(&text).unwrap();
            let entry = table.iter().next_back().unwrap();
            prop_assert_eq!(&entry.mount_point, Path::new(&point));
            let root = [b"/".as_slice(), &root].concat();
            prop_assert_eq!(entry.root.as_os_str(), OsStr::from_bytes(&root));
            prop_assert_eq!(&entry.source, OsStr::new(&source));
            prop_assert_eq!((entry.id, entry.device), (id.into(), DeviceNumber { major, minor }));
            prop_assert!(entry.filesystem_read_only && entry.shared);
            // A mount that is overlooked could be somebody's data.
            prop_assert_eq!(table.iter().count(), 9);
        }

        #[test]
        fn a_torn_table_is_read_in_whole_lines_or_refused(cut in 0_usize..SEEN.len(), at in 0_usize..SEEN.len(), byte: u8) {
            let whole = SEEN.as_bytes()[..cut].split(|byte| *byte == b'\n').count() - 1;
            if let Ok(table) = MountTable::parse(&SEEN.as_bytes()[..cut]) {
                prop_assert!((whole..=whole + 1).contains(&table.iter().count()));
            }
            let mut changed = SEEN.as_bytes().to_vec();
            changed[at] = byte;
            if let Err(error) = MountTable::parse(&changed) {
                prop_assert!(error.number >= 1 && error.number <= 11, "{error}");
            }
        }
    }
}
