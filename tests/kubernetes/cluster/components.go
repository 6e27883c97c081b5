package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"orlop/e2e/artifacts"
)

// Addresses inside the node's network namespace; node.sh sets them.
const (
	nodeAddress    = "10.88.0.1"
	serviceAddress = "10.96.0.1"
)

// NodeName is the name of the only node.
const NodeName = "node1"

// program is one long-lived process of the node, as it is started inside.
type program struct {
	name      string
	arguments []string
}

var (
	containerd = program{"containerd", []string{"containerd", "--config", "/run/node/containerd.toml"}}
	etcd       = kubernetes("etcd",
		"--data-dir=/var/lib/etcd", "--listen-client-urls=http://127.0.0.1:2379",
		"--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380",
		// A node that is killed here leaves its page cache.
		"--unsafe-no-fsync")
	apiserver = kubernetes("kube-apiserver",
		"--etcd-servers=http://127.0.0.1:2379", "--secure-port=443", "--bind-address=0.0.0.0",
		"--advertise-address="+nodeAddress, "--service-cluster-ip-range=10.96.0.0/24",
		"--tls-cert-file=/run/node/pki/apiserver.crt", "--tls-private-key-file=/run/node/pki/apiserver.key",
		"--client-ca-file=/run/node/pki/ca.crt", "--authorization-mode=RBAC", "--allow-privileged=true",
		"--service-account-key-file=/run/node/pki/accounts.key",
		"--service-account-signing-key-file=/run/node/pki/accounts.key",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--kubelet-client-certificate=/run/node/pki/admin.crt", "--kubelet-client-key=/run/node/pki/admin.key",
		"--kubelet-preferred-address-types=InternalIP")
	controllers = kubernetes("kube-controller-manager",
		"--kubeconfig=/run/node/pki/admin.conf", "--leader-elect=false", "--root-ca-file=/run/node/pki/ca.crt",
		"--service-account-private-key-file=/run/node/pki/accounts.key",
		// It makes this directory, by default outside of what is the run's own.
		"--flex-volume-plugin-dir=/var/lib/kubelet/volumeplugins")
	scheduler = kubernetes("kube-scheduler", "--kubeconfig=/run/node/pki/admin.conf", "--leader-elect=false")
	// It belongs to the cluster and not to a driver.
	snapshots = program{"snapshot-controller", []string{
		"/run/bin/snapshot-controller", "--kubeconfig=/run/node/pki/admin.conf", "--feature-gates=CSIVolumeGroupSnapshot=true",
	}}
	kubelet = kubernetes("kubelet",
		"--kubeconfig=/run/node/pki/admin.conf", "--config=/run/node/kubelet.yaml", "--node-ip="+nodeAddress,
		"--hostname-override="+NodeName)
)

func kubernetes(arguments ...string) program {
	return program{arguments[0], append([]string{"/run/bin/kubernetes"}, arguments...)}
}

// start runs a program on the node until it or the node ends; it writes to a log of its name.
func (p program) start(dir string) (*exec.Cmd, error) {
	log, err := appendTo(filepath.Join(dir, "logs", p.name+".log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	command := enter(dir, p.arguments...)
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	go func() { _ = command.Wait() }()
	return command, nil
}

const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + artifacts.PauseImage + `"
  disable_apparmor = true
  # The machine may not allow to protect a pod from the killer.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/run/node/cni"
`

const cniConfig = `{"cniVersion": "0.4.0", "name": "e2e", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true,
   "ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": "10.88.0.0/24", "gateway": "` + nodeAddress + `"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}}]}
`

// kubeletConfig wants no room on the disk, which other things than this node fill, and changes nothing on the machine.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, x509: {clientCAFile: /run/node/pki/ca.crt}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
protectKernelDefaults: true
makeIPTablesUtilChains: false
volumePluginDir: /var/lib/kubelet/volumeplugins
resolvConf: ""
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi}
syncFrequency: 10s
podLogsDir: /run/node/logs/pods
crashLoopBackOff: {maxContainerRestartPeriod: 2s}
`

func writeConfigs(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "cni"), 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"containerd.toml": containerdConfig, "cni/10-e2e.conflist": cniConfig, "kubelet.yaml": kubeletConfig,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
