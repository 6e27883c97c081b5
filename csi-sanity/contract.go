package sanity

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"orlop/csi-sanity/contract"
)

func contractReport(dir string) string { return filepath.Join(dir, "contract.json") }

// examineContract runs our own suite and judges its results.
func examineContract(ctx context.Context, o order, k *keeper, v *verdict) {
	problem := func(format string, about ...any) { v.Problems = append(v.Problems, fmt.Sprintf(format, about...)) }
	ctx, cancel := context.WithTimeout(ctx, suiteTimeout)
	defer cancel()
	report, err := runContract(ctx, o)
	if err != nil {
		problem("%v", err)
		return
	}
	v.Problems = append(v.Problems, report.Problems...)
	for _, result := range report.Results {
		v.Notes = append(v.Notes, result.Notes...)
		switch result.Outcome {
		case contract.Passed:
			v.Passed++
		case contract.Skipped:
			v.Skipped++
		case contract.Failed:
			v.Failed++
			problem("failed: %s\n%s", result.Name, indent(result.Message))
		}
	}
	v.Problems = append(v.Problems, judgeMissing(report.Results, missing(o.Configuration))...)
	if killed := k.killed(); killed != report.Kills {
		problem("the suite killed the driver %d times, but it was killed %d times", report.Kills, killed)
	}
}

// runContract runs our own suite once. Its exit code counts as well: what is wrong outside of the
// specs is in no result.
func runContract(ctx context.Context, o order) (contract.Report, error) {
	c, dir := o.Configuration, o.Directory
	runError := runSuiteOfOurs(ctx, o,
		"-test.run=^TestContract$", "-test.v", "-test.timeout="+suiteTimeout.String(),
		fmt.Sprintf("-size=%d", contractSize(c)),
		"-abilities="+strings.Join(contractAbilities(c), ","),
		"-log="+driverLog(dir),
		"-may-kill",
		"-mutable=onDelete=archive",
		"-report="+contractReport(dir),
		fmt.Sprintf("-snapshots=%d", contractSnapshots(c)),
	)
	report, err := contract.ReadReport(contractReport(dir))
	if err != nil {
		return report, fmt.Errorf("the suite left no report (%w); it ended with: %v", err, runError)
	}
	failed := slices.ContainsFunc(report.Results, func(r contract.Result) bool { return r.Outcome == contract.Failed })
	if runError != nil && !failed && len(report.Problems) == 0 {
		return report, fmt.Errorf("the suite ended with %w, but no spec failed: see its log", runError)
	}
	return report, nil
}

// benchmark measures copies and keeps what was printed.
func benchmark(ctx context.Context, o order, p *pool, v *verdict) {
	err := runSuiteOfOurs(ctx, o, "-test.run=^$", "-test.bench=^BenchmarkCopies$", "-test.benchtime=20x", "-pool="+p.path)
	if err != nil {
		v.Problems = append(v.Problems, err.Error())
	}
	text, err := os.ReadFile(suiteLog(o.Directory))
	if err != nil {
		v.Problems = append(v.Problems, err.Error())
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 2 && strings.HasPrefix(fields[0], "Benchmark") {
			v.Notes = append(v.Notes, fields[1]+" times: "+strings.Join(fields[2:], " "))
		}
	}
}

// runSuiteOfOurs runs the program of our own suite.
func runSuiteOfOurs(ctx context.Context, o order, arguments ...string) error {
	c, dir := o.Configuration, o.Directory
	arguments = append(arguments,
		"-endpoint="+endpoint(dir),
		"-directory="+stagingPath(dir),
		"-with="+strings.Join(contractFacts(c), ","),
	)
	if c.Block {
		arguments = append(arguments, "-block")
	}
	if len(c.Parameters) > 0 {
		var pairs []string
		for key, value := range c.Parameters {
			pairs = append(pairs, key+"="+value)
		}
		arguments = append(arguments, "-params="+strings.Join(pairs, ","))
	}
	output, err := os.Create(suiteLog(dir))
	if err != nil {
		return err
	}
	defer output.Close()
	command := exec.CommandContext(ctx, o.Suite, arguments...)
	command.Stdout, command.Stderr = output, output
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return command.Run()
}

// contractSize is small, for there are many volumes, but above the smallest of each filesystem.
func contractSize(c Configuration) int64 {
	switch c.VolumeFilesystem {
	case "xfs":
		return 320 * mebibyte
	case "btrfs":
		return 256 * mebibyte
	default:
		return 64 * mebibyte
	}
}

// contractSnapshots is large where a mounted database is copied without a stop, once for each
// filesystem that can do that; elsewhere it would prove the same again.
func contractSnapshots(c Configuration) int {
	if c.VolumeFilesystem == "ext4" && (c.PoolFilesystem == "btrfs" || c.PoolFilesystem == "xfs") {
		return 100
	}
	return 20
}

// contractFacts are what our suite is to believe of a configuration.
func contractFacts(c Configuration) []string {
	var all []string
	if c.VolumeFilesystem != "" {
		all = append(all, contract.OwnFilesystem)
	}
	if c.VolumeFilesystem != "" || c.Block {
		all = append(all, contract.SizeIsLimit)
	}
	if c.PoolFilesystem != "" {
		all = append(all, contract.OwnPool)
	}
	if c.VolumeFilesystem != "" && (c.VolumeFilesystem != "ext4" || hasCapability(unix.CAP_SYS_RESOURCE)) {
		all = append(all, contract.GrowsMounted)
	}
	if !c.Block {
		all = append(all, contract.Inline)
	}
	isLoop, shares := c.VolumeFilesystem != "" || c.Block, c.PoolFilesystem == "btrfs" || c.PoolFilesystem == "xfs"
	if isLoop {
		all = append(all, contract.ChangedBlocks)
	}
	if shares && (isLoop || c.PoolFilesystem == "btrfs") {
		all = append(all, contract.InstantCopies)
	}
	if shares && c.VolumeFilesystem != "" {
		all = append(all, contract.InstantGroups)
	}
	return append(all, contract.OneWriter, contract.IndependentCopies)
}

// hasCapability says whether this process, and with it the driver, has a capability of Linux.
func hasCapability(capability uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// contractAbilities are exactly what the driver has to have, in the words of our suite.
func contractAbilities(c Configuration) []string {
	all := append(contractFacts(c),
		"may-kill", "log", "mutable-parameters",
		"plugin/CONTROLLER_SERVICE", "plugin/VOLUME_ACCESSIBILITY_CONSTRAINTS", "plugin/GROUP_CONTROLLER_SERVICE",
		"plugin/SNAPSHOT_METADATA_SERVICE", "plugin/SNAPSHOT_ACCESSIBILITY_CONSTRAINTS", "plugin/ONLINE",
		"controller/CREATE_DELETE_VOLUME", "controller/LIST_VOLUMES", "controller/GET_CAPACITY",
		"controller/GET_VOLUME", "controller/SINGLE_NODE_MULTI_WRITER", "controller/EXPAND_VOLUME",
		"controller/CREATE_DELETE_SNAPSHOT", "controller/LIST_SNAPSHOTS", "controller/GET_SNAPSHOT",
		"controller/CLONE_VOLUME", "controller/MODIFY_VOLUME", "controller/GET_VOLUME_HEALTH",
		"controller/LIST_VOLUME_HEALTH", "node/GET_VOLUME_HEALTH", "node/GET_STORAGE_HEALTH",
		"node/STAGE_UNSTAGE_VOLUME", "node/GET_VOLUME_STATS", "node/EXPAND_VOLUME", "node/SINGLE_NODE_MULTI_WRITER",
		"mode/SINGLE_NODE_WRITER", "mode/SINGLE_NODE_READER_ONLY", "mode/MULTI_NODE_READER_ONLY",
		"mode/MULTI_NODE_SINGLE_WRITER", "mode/MULTI_NODE_MULTI_WRITER", "mode/SINGLE_NODE_SINGLE_WRITER",
		"mode/SINGLE_NODE_MULTI_WRITER",
	)
	if c.Attach {
		all = append(all, "controller/PUBLISH_UNPUBLISH_VOLUME", "controller/PUBLISH_READONLY",
			"controller/LIST_VOLUMES_PUBLISHED_NODES",
			// The volume condition of CSI 1.9, which 1.13 has no name for.
			"node/4")
	}
	if c.Block {
		return append(all, "block")
	}
	return append(all, "mount")
}
