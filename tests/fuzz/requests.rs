//! Parameters, mkfs and mount options, ids, sizes and quantities.

use std::collections::BTreeMap;

use orlop::volume::{
    ByteSize, CapacityRange, Filesystem, GroupId, Key, MountFlags, MutableParameters, PARAMETERS,
    Parameters, PoolUuid, SnapshotId, VolumeId, parse_quantity,
};
use proptest::prelude::*;

/// A text that is long, strange, or nearly right.
fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,40}",
        "[ -~]{0,40}",
        "[a-z0-9=,./-]{0,12}",
        Just("x".repeat(100_000)),
        Just("\u{1F6A2}".repeat(300)),
        Just("\0\n\r\t ".to_owned()),
    ]
}

fn any_parameters() -> impl Strategy<Value = BTreeMap<String, String>> {
    let names: Vec<&str> = PARAMETERS.iter().map(|parameter| parameter.name).collect();
    let name = prop_oneof![
        8 => prop::sample::select(names).prop_map(str::to_owned),
        1 => Just("csi.storage.k8s.io/fstype".to_owned()),
        1 => any_text(),
    ];
    let words = vec![
        "hostpath", "loop", "any", "fast", "auto", "required", "off", "thin", "thick", "on",
        "0777", "0", "1000", "delete", "retain", "archive", "wipe", "-m 0", "-L data", "ext4",
        "xfs", "btrfs",
    ];
    let value =
        prop_oneof![4 => prop::sample::select(words).prop_map(str::to_owned), 1 => any_text()];
    prop::collection::btree_map(name, value, 0..6)
}

/// So much of a name is shown in an error.
fn beginning(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

proptest! {
    #[test]
    fn parameters_are_understood_or_refused_by_name(raw in any_parameters()) {
        match Parameters::parse(&raw) {
            Ok(parameters) => {
                let normalised = parameters.normalised();
                let again = Parameters::parse(&normalised).unwrap();
                prop_assert_eq!(again.normalised(), normalised);
            }
            Err(error) => {
                let text = error.to_string();
                let named = |name: &String| {
                    text.contains(&beginning(name, 80)) || text.contains(&format!("{:?}", beginning(name, 80)))
                };
                prop_assert!(raw.keys().any(named), "{text}");
                prop_assert!(text.len() < 3000, "{} bytes", text.len());
            }
        }
        if let Err(error) = MutableParameters::parse(&raw) {
            prop_assert!(error.to_string().len() < 3000);
        }
    }

    #[test]
    fn mkfs_never_gets_a_path_or_a_second_device(text in prop_oneof![
        any_text(),
        "(-[a-zA-Z] [a-z_]{0,10}=?[0-9a-zA-Z/.]{0,8} ?){0,4}",
        "(--?[a-z]{1,8} [a-z0-9=,/]{1,20} ){1,3}",
    ]) {
        let raw = BTreeMap::from([("mkfsOptions".to_owned(), text), ("backend".to_owned(), "loop".to_owned())]);
        // Some kinds of volumes take none.
        let Ok(parameters) = Parameters::parse(&raw) else { return Ok(()) };
        for filesystem in Filesystem::ALL {
            match parameters.mkfs_options_for(*filesystem) {
                Ok(options) => prop_assert!(options.iter().all(|option| !format!("{option:?}").contains('/')), "{options:?}"),
                Err(error) => prop_assert!(error.to_string().contains("mkfsOptions")),
            }
        }
    }

    #[test]
    fn mount_flags_never_name_a_device_or_a_path(flags in prop::collection::vec(prop_oneof![
        any_text(),
        prop::sample::select(vec!["ro", "noatime", "discard", "commit=5", "data=journal", "compress=zstd", "logdev=/dev/sda", "subvol=/x", "errors=panic"]).prop_map(str::to_owned),
        "[a-z]{1,10}=[a-z0-9/,]{0,10}",
    ], 0..5)) {
        match MountFlags::parse(&flags) {
            Ok(parsed) => {
                prop_assert!(parsed.options.iter().all(|option| !option.contains('/')), "{parsed:?}");
                let again = MountFlags::parse(&parsed.options).unwrap();
                prop_assert_eq!(&again.options, &parsed.options);
                for filesystem in Filesystem::ALL {
                    let _fit_or_not = parsed.check(Some(*filesystem));
                }
                prop_assert_eq!(parsed.check(None).is_ok(), parsed.options.is_empty());
            }
            Err(error) => {
                let text = error.to_string();
                let named = |flag: &String| text.contains(&format!("{:?}", beginning(flag, 80))) || text.contains(&beginning(flag, 80));
                prop_assert!(flags.iter().any(named), "{text}");
                prop_assert!(text.len() < 4000, "{} bytes", text.len());
            }
        }
    }

    #[test]
    fn ids_and_page_tokens_are_what_they_print_or_refused(kind in "[vsg]", pool in "[0-9a-f]{8}", key in "[0-9a-f]{32}", generation in "[0-9a-f]{8}", at: prop::sample::Index, other: char, text in any_text()) {
        let id = format!("{kind}-{pool}-{key}-{generation}");
        let mut changed: Vec<char> = id.chars().collect();
        let place = at.index(changed.len());
        changed[place] = other;
        let changed: String = changed.into_iter().collect();
        for text in [&id, &changed, &text] {
            let read = [
                text.parse::<VolumeId>().map(|id| id.to_string()),
                text.parse::<SnapshotId>().map(|id| id.to_string()),
                text.parse::<GroupId>().map(|id| id.to_string()),
                text.parse::<Key>().map(|key| key.to_string()),
                text.parse::<PoolUuid>().map(|uuid| uuid.to_string()),
            ];
            for printed in read {
                match printed {
                    Ok(printed) => prop_assert_eq!(&printed, text),
                    Err(error) => prop_assert!(error.to_string().len() < 2000),
                }
            }
        }
    }

    #[test]
    fn sizes_are_chosen_within_what_was_asked(required: i64, limit: i64, minimum in 1_u64..(1 << 40), step in prop::sample::select(vec![1_u64, 512, 4096, 1 << 20])) {
        let Ok(range) = CapacityRange::parse(required, limit) else { return Ok(()) };
        if let Ok(size) = range.choose(ByteSize::new(minimum), step) {
            prop_assert!(size.bytes() >= required.max(0).unsigned_abs() && size.bytes() % step == 0);
            prop_assert!(limit == 0 || size.bytes() <= limit.unsigned_abs());
            prop_assert!(range.contains(size));
        }
    }

    #[test]
    fn quantities_are_what_they_say(whole in "[0-9]{1,25}", part in "(\\.[0-9]{0,25})?", unit in prop_oneof!["(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)?", "[eE][+-]?[0-9]{1,12}", "\\PC{0,4}"]) {
        // Otherwise it would be a part of the number.
        prop_assume!(!unit.starts_with(|c: char| c.is_ascii_digit() || c == '.'));
        let text = format!("{whole}{part}{unit}");
        if let Ok(size) = parse_quantity(&text) {
            let number: f64 = format!("{whole}{part}").parse().unwrap();
            let factor = match unit.as_str() {
                "Ki" => 2_f64.powi(10), "Mi" => 2_f64.powi(20), "Gi" => 2_f64.powi(30),
                "Ti" => 2_f64.powi(40), "Pi" => 2_f64.powi(50), "Ei" => 2_f64.powi(60),
                "n" => 1e-9, "u" => 1e-6, "m" => 1e-3, "" => 1.0, "k" => 1e3,
                "M" => 1e6, "G" => 1e9, "T" => 1e12, "P" => 1e15, "E" => 1e18,
                exponent => format!("1{exponent}").parse().unwrap(),
            };
            // Parts of a byte are rounded up.
            let (least, size) = (number * factor, size.bytes().to_string().parse::<f64>().unwrap());
            prop_assert!(size >= least * 0.999_999 && size <= least.mul_add(1.000_001, 1.0), "{text}: {size}");
        }
    }
}
