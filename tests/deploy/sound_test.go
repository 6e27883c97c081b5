package deploy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	storage "k8s.io/api/storage/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
)

// checkObjects looks at what the types alone cannot refuse: names that must meet, and what this driver must have.
func checkObjects(t *testing.T, objects []runtime.Object) {
	t.Helper()
	checkNamesDiffer(t, objects)
	set := the[*apps.DaemonSet](t, objects)
	pod := set.Spec.Template.Spec
	checkPod(t, pod)
	checkSelector(t, set.Spec.Selector, set.Spec.Template.Labels)
	for _, monitor := range all[*monitoring.PodMonitor](objects) {
		checkSelector(t, &monitor.Spec.Selector, set.Spec.Template.Labels)
		checkMetrics(t, pod, monitor.Spec.PodMetricsEndpoints)
	}
	checkRights(t, objects, pod.ServiceAccountName)

	driver := the[*storage.CSIDriver](t, objects)
	if *driver.Spec.AttachRequired || !*driver.Spec.StorageCapacity || !*driver.Spec.PodInfoOnMount {
		t.Errorf("the CSIDriver is %+v", driver.Spec)
	}
	for _, class := range all[*storage.StorageClass](objects) {
		if class.Provisioner != driver.Name || *class.VolumeBindingMode != storage.VolumeBindingWaitForFirstConsumer {
			t.Errorf("StorageClass %s: provisioner %s, binding %s", class.Name, class.Provisioner, *class.VolumeBindingMode)
		}
	}
	checkShape(t, pod, driver.Name)
	if surge := set.Spec.UpdateStrategy.RollingUpdate.MaxSurge; surge == nil || surge.IntValue() != 0 {
		t.Error("two drivers of one node would overlap")
	}
}

func checkNamesDiffer(t *testing.T, objects []runtime.Object) {
	t.Helper()
	seen := map[string]bool{}
	for _, object := range objects {
		name := nameOf(object)
		if seen[name] {
			t.Errorf("%s is there twice", name)
		}
		seen[name] = true
	}
}

func checkSelector(t *testing.T, selector *meta.LabelSelector, own map[string]string) {
	t.Helper()
	matches, err := meta.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	if matches.Empty() || !matches.Matches(labels.Set(own)) {
		t.Errorf("the selector %s does not find pods with %v", matches, own)
	}
}

// checkMetrics looks whether the driver listens where it is scraped.
func checkMetrics(t *testing.T, pod core.PodSpec, endpoints []monitoring.PodMetricsEndpoint) {
	t.Helper()
	driver := pod.Containers[0]
	if len(endpoints) != 1 || endpoints[0].Port == nil {
		t.Fatalf("it scrapes %+v", endpoints)
	}
	at := slices.IndexFunc(driver.Ports, func(p core.ContainerPort) bool { return p.Name == *endpoints[0].Port })
	if at < 0 {
		t.Fatalf("%s has no port %s", driver.Name, *endpoints[0].Port)
	}
	listens := slices.ContainsFunc(driver.Env, func(e core.EnvVar) bool {
		return e.Name == "ORLOP_METRICS_ADDRESS" && strings.HasSuffix(e.Value, fmt.Sprintf(":%d", driver.Ports[at].ContainerPort))
	})
	if !listens {
		t.Errorf("%s does not listen at port %d", driver.Name, driver.Ports[at].ContainerPort)
	}
}

// checkPod looks for mounts of volumes that are not there, volumes that nobody mounts, and probes of ports without a name.
func checkPod(t *testing.T, pod core.PodSpec) {
	t.Helper()
	volumes := map[string]bool{}
	for _, volume := range pod.Volumes {
		if _, twice := volumes[volume.Name]; twice {
			t.Errorf("volume %s is there twice", volume.Name)
		}
		volumes[volume.Name] = false
	}
	ports := map[string]bool{}
	for _, container := range pod.Containers {
		places := map[string]bool{}
		for _, mount := range container.VolumeMounts {
			if _, there := volumes[mount.Name]; !there {
				t.Errorf("%s mounts %s, which is no volume of its pod", container.Name, mount.Name)
			}
			volumes[mount.Name] = true
			if places[mount.MountPath] {
				t.Errorf("%s mounts two volumes at %s", container.Name, mount.MountPath)
			}
			places[mount.MountPath] = true
		}
		own := map[string]bool{}
		for _, port := range container.Ports {
			if ports[port.Name] {
				t.Errorf("port %s is there twice", port.Name)
			}
			ports[port.Name], own[port.Name] = true, true
		}
		for _, probe := range []*core.Probe{container.StartupProbe, container.LivenessProbe, container.ReadinessProbe} {
			if probe == nil {
				continue
			}
			if get := probe.HTTPGet; get != nil && !own[get.Port.StrVal] {
				t.Errorf("%s is probed at port %s, which it does not have", container.Name, get.Port.String())
			}
			if socket := probe.TCPSocket; socket != nil && !own[socket.Port.StrVal] {
				t.Errorf("%s is probed at port %s, which it does not have", container.Name, socket.Port.String())
			}
		}
		if len(container.Resources.Requests) == 0 {
			t.Errorf("%s requests nothing", container.Name)
		}
	}
	for name, used := range volumes {
		if !used {
			t.Errorf("nobody mounts volume %s", name)
		}
	}
}

// checkRights looks whether every role is bound to the pod's account, and whether one gives more than it should.
func checkRights(t *testing.T, objects []runtime.Object, account string) {
	t.Helper()
	if the[*core.ServiceAccount](t, objects).Name != account {
		t.Errorf("the pods run as %s", account)
	}
	roles := map[string]bool{}
	rules := []rbac.PolicyRule{}
	for _, role := range all[*rbac.ClusterRole](objects) {
		roles["ClusterRole "+role.Name] = false
		rules = append(rules, role.Rules...)
	}
	for _, role := range all[*rbac.Role](objects) {
		roles["Role "+role.Name] = false
		rules = append(rules, role.Rules...)
	}
	bind := func(name string, to rbac.RoleRef, subjects []rbac.Subject) {
		if _, there := roles[to.Kind+" "+to.Name]; !there {
			t.Errorf("%s binds %s %s, which is not there", name, to.Kind, to.Name)
		}
		roles[to.Kind+" "+to.Name] = true
		if len(subjects) != 1 || subjects[0].Name != account {
			t.Errorf("%s binds %v", name, subjects)
		}
	}
	for _, binding := range all[*rbac.ClusterRoleBinding](objects) {
		bind(binding.Name, binding.RoleRef, binding.Subjects)
	}
	for _, binding := range all[*rbac.RoleBinding](objects) {
		bind(binding.Name, binding.RoleRef, binding.Subjects)
	}
	for role, bound := range roles {
		if !bound {
			t.Errorf("%s is bound to nobody", role)
		}
	}
	for _, rule := range rules {
		if slices.Contains(rule.Verbs, "*") || slices.Contains(rule.Resources, "*") || slices.Contains(rule.Resources, "secrets") {
			t.Errorf("a role gives %v on %v", rule.Verbs, rule.Resources)
		}
	}
}

// checkShape looks at the containers: the driver may everything, the others nothing, and those that cannot reach every
// node's volumes do not try.
func checkShape(t *testing.T, pod core.PodSpec, driver string) {
	t.Helper()
	containers := map[string]core.Container{}
	for _, container := range pod.Containers {
		containers[container.Name] = container
		security := container.SecurityContext
		if container.Name == "orlop" {
			if !*security.Privileged {
				t.Error("the driver is not privileged")
			}
			continue
		}
		if *security.AllowPrivilegeEscalation || !slices.Contains(security.Capabilities.Drop, "ALL") || !*security.ReadOnlyRootFilesystem {
			t.Errorf("%s may too much: %+v", container.Name, security)
		}
	}
	isSingle := slices.Contains(containers["orlop"].Args, "--controller-expand=on")
	has := func(container, argument string) bool { return slices.Contains(containers[container].Args, argument) }
	if !has("csi-provisioner", "--node-deployment") || !has("csi-provisioner", "--enable-capacity") {
		t.Errorf("csi-provisioner has %v", containers["csi-provisioner"].Args)
	}
	if has("csi-resizer", "--leader-election") == isSingle || has("csi-resizer", "--feature-gates=VolumeAttributesClass=false") == isSingle {
		t.Errorf("csi-resizer has %v", containers["csi-resizer"].Args)
	}
	if _, there := containers["csi-snapshotter"]; there {
		if has("csi-snapshotter", "--node-deployment") == isSingle || has("csi-snapshotter", "--leader-election") {
			t.Errorf("csi-snapshotter has %v", containers["csi-snapshotter"].Args)
		}
	}
	// Kubelet is told a path of the host, and the driver's socket must be what it finds there.
	var directory string
	for _, volume := range pod.Volumes {
		if volume.Name == "socket" {
			directory = volume.HostPath.Path
		}
	}
	if !strings.HasSuffix(directory, "/plugins/"+driver) || !has("node-driver-registrar", "--kubelet-registration-path="+directory+"/csi.sock") {
		t.Errorf("kubelet is told %v, the socket is in %s", containers["node-driver-registrar"].Args, directory)
	}
}
