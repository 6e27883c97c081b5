//! The PersistentVolume of a volume, as Kubernetes takes it for static provisioning.
//!
//! Every value is written as a JSON string, which is a YAML string whatever is in it.

use std::io::Write;

use clap::Args;
use serde_json::Value;

use crate::cli::Failure;
use crate::cli::config::{PoolArgs, check_driver_name, topology};
use crate::engine::{Described, offline};
use crate::volume::{ByteSize, Filesystem, Topology, VolumeId};

#[derive(Debug, Args)]
pub(in crate::cli) struct ManifestArgs {
    #[command(flatten)]
    pools: PoolArgs,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
    /// The volume's id
    id: VolumeId,
}

/// What the volume itself does not know.
#[derive(Debug, Args)]
pub(super) struct KubernetesArgs {
    /// The name of this node, as Kubernetes knows it
    #[arg(long, value_name = "NAME", env = "ORLOP_NODE_ID")]
    node: Option<String>,
    /// The name of the CSI driver
    #[arg(long, value_name = "NAME", env = "ORLOP_DRIVER_NAME", default_value = "orlop.csi.local")]
    driver_name: String,
    /// The storage class that claims for it name; without one they name ""
    #[arg(long, value_name = "NAME", default_value = "")]
    storage_class: String,
}

/// A volume's PersistentVolume.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) size: ByteSize,
    pub(super) block: bool,
    pub(super) filesystem: Option<Filesystem>,
    pub(super) driver_name: String,
    pub(super) topology: Topology,
    pub(super) storage_class: String,
}

impl KubernetesArgs {
    /// Where the volume is, by the node's name; `None` when that was not given.
    pub(super) fn topology(&self) -> Result<Option<Topology>, Failure> {
        check_driver_name(&self.driver_name)?;
        Ok(self.node.as_deref().map(|node| topology(&self.driver_name, node)))
    }

    pub(super) fn required_topology(&self) -> Result<Topology, Failure> {
        let node = "give --node NAME, the node's name as Kubernetes knows it: a PersistentVolume that does not say where it is would be used on any node";
        self.topology()?.ok_or_else(|| node.into())
    }

    pub(super) fn storage_class(&self) -> String {
        self.storage_class.clone()
    }

    pub(super) fn manifest(&self, volume: Described, topology: Topology) -> Manifest {
        Manifest {
            id: volume.id.to_string(),
            name: volume.name,
            size: volume.size,
            block: volume.block,
            filesystem: volume.filesystem,
            driver_name: self.driver_name.clone(),
            topology,
            storage_class: self.storage_class.clone(),
        }
    }
}

pub(super) fn run(args: &ManifestArgs) -> Result<(), Failure> {
    let topology = args.kubernetes.required_topology()?;
    let volume = offline::volume(&args.pools.pools()?, &args.id)?;
    args.kubernetes.manifest(volume, topology).print()
}

/// A name that Kubernetes takes for an object (a DNS subdomain); that of another volume is its id.
fn object_name<'a>(name: &'a str, id: &'a str) -> &'a str {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |label: &str| {
        label.starts_with(letter)
            && label.ends_with(letter)
            && label.chars().all(|c| letter(c) || c == '-')
    };
    if name.len() <= 253 && name.split('.').all(label) { name } else { id }
}

impl Manifest {
    pub(super) fn print(&self) -> Result<(), Failure> {
        Ok(write!(std::io::stdout(), "{self}")?)
    }
}

impl std::fmt::Display for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quoted = |text: &str| Value::from(text).to_string();
        let mode = if self.block { "Block" } else { "Filesystem" };
        writeln!(f, "apiVersion: v1\nkind: PersistentVolume\nmetadata:")?;
        writeln!(f, "  name: {}", quoted(object_name(&self.name, &self.id)))?;
        writeln!(f, "spec:\n  capacity:\n    storage: \"{}\"", self.size.bytes())?;
        writeln!(f, "  volumeMode: {mode}\n  accessModes:\n  - ReadWriteOnce")?;
        writeln!(f, "  persistentVolumeReclaimPolicy: Retain")?;
        writeln!(f, "  storageClassName: {}", quoted(&self.storage_class))?;
        writeln!(f, "  csi:\n    driver: {}", quoted(&self.driver_name))?;
        writeln!(f, "    volumeHandle: {}", quoted(&self.id))?;
        if let Some(filesystem) = self.filesystem {
            writeln!(f, "    fsType: {}", quoted(filesystem.as_str()))?;
        }
        writeln!(f, "  nodeAffinity:\n    required:\n      nodeSelectorTerms:")?;
        for (number, (key, value)) in self.topology.iter().enumerate() {
            if number == 0 {
                writeln!(f, "      - matchExpressions:")?;
            }
            writeln!(f, "        - key: {}\n          operator: In", quoted(key))?;
            writeln!(f, "          values:\n          - {}", quoted(value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, filesystem: Option<Filesystem>, block: bool) -> String {
        Manifest {
            id: "v-01234567-0123456789abcdef0123456789abcdef-01234567".to_owned(),
            name: name.to_owned(),
            size: ByteSize::mib(64),
            block,
            filesystem,
            driver_name: "orlop.csi.local".to_owned(),
            topology: topology("orlop.csi.local", "n1"),
            storage_class: String::new(),
        }
        .to_string()
    }

    #[test]
    fn a_manifest_is_a_persistent_volume() {
        let expected = r#"apiVersion: v1
kind: PersistentVolume
metadata:
  name: "data-1"
spec:
  capacity:
    storage: "67108864"
  volumeMode: Filesystem
  accessModes:
  - ReadWriteOnce
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  csi:
    driver: "orlop.csi.local"
    volumeHandle: "v-01234567-0123456789abcdef0123456789abcdef-01234567"
    fsType: "ext4"
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions:
        - key: "topology.orlop.csi.local/node"
          operator: In
          values:
          - "n1"
"#;
        assert_eq!(manifest("data-1", Some(Filesystem::Ext4), false), expected);
        let block = expected.replace("Filesystem", "Block").replace("    fsType: \"ext4\"\n", "");
        assert_eq!(manifest("data-1", None, true), block);
    }

    #[test]
    fn a_name_that_kubernetes_does_not_take_is_not_given_to_it() {
        let id = "v-01234567-0123456789abcdef0123456789abcdef-01234567";
        for name in ["data", "a.b-c.9", &"x".repeat(253)] {
            assert_eq!(object_name(name, id), name);
        }
        let long = "x".repeat(254);
        for name in ["", "A", "a b", "../x", "a..b", "-a", "a-", "ä", "a\nspec: {}", &long] {
            assert_eq!(object_name(name, id), id, "{name:?}");
            assert!(manifest(name, None, false).contains(&format!("  name: \"{id}\"\n")));
        }
    }

    #[test]
    fn what_is_given_cannot_break_out_of_its_string() {
        let mut broken = Manifest {
            id: "i".to_owned(),
            name: "n".to_owned(),
            size: ByteSize::mib(1),
            block: false,
            filesystem: None,
            driver_name: "d.local".to_owned(),
            topology: Topology::new(),
            storage_class: "fast\"\nkind: Secret\t\u{1}".to_owned(),
        };
        let text = broken.to_string();
        assert!(
            text.contains("storageClassName: \"fast\\\"\\nkind: Secret\\t\\u0001\"\n"),
            "{text}"
        );
        broken.storage_class.clear();
        assert_eq!(text.lines().count(), broken.to_string().lines().count());
    }
}
