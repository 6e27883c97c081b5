package sanity

import (
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"gopkg.in/yaml.v2"
)

// Outcome is what became of a spec.
type Outcome int

// The outcomes. A pending spec, which the suite itself switched off, counts as skipped; one that
// panicked, timed out or was interrupted counts as failed.
const (
	Passed Outcome = iota
	Failed
	Skipped
)

// SpecResult is one spec of the suite after a run.
type SpecResult struct {
	Name    string
	Outcome Outcome
	Message string
}

// junitReport is the part of the suite's report that is used here.
type junitReport struct {
	Suites []struct {
		Cases []struct {
			Name    string `xml:"name,attr"`
			Status  string `xml:"status,attr"`
			Failure *note  `xml:"failure"`
			Error   *note  `xml:"error"`
			Skipped *note  `xml:"skipped"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

type note struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// parseReport reads a JUnit report.
func parseReport(report []byte) ([]SpecResult, error) {
	var parsed junitReport
	if err := xml.Unmarshal(report, &parsed); err != nil {
		return nil, fmt.Errorf("the suite's report is not readable: %w", err)
	}
	var results []SpecResult
	for _, suite := range parsed.Suites {
		for _, spec := range suite.Cases {
			result := SpecResult{Name: strings.TrimPrefix(spec.Name, "[It] "), Outcome: Failed, Message: spec.Status}
			switch spec.Status {
			case "passed":
				result.Outcome = Passed
			case "skipped", "pending":
				result.Outcome = Skipped
			}
			for _, said := range []*note{spec.Skipped, spec.Failure, spec.Error} {
				if said != nil {
					result.Message = strings.TrimSpace(said.Message + "\n" + said.Text)
				}
			}
			results = append(results, result)
		}
	}
	if len(results) == 0 {
		return nil, fmt.Errorf("the suite's report has no specs")
	}
	return results, nil
}

// runSuite runs csi-sanity once and returns what became of each spec. The suite's own exit code is
// of no use beside that: it is the report which says what failed.
func runSuite(ctx context.Context, c Configuration, dir, program string) ([]SpecResult, error) {
	report := filepath.Join(dir, "junit.xml")
	arguments := []string{
		"-csi.endpoint=" + endpoint(dir),
		"-csi.mountdir=" + filepath.Join(dir, "mount"),
		"-csi.stagingdir=" + stagingPath(dir),
		fmt.Sprintf("-csi.testvolumesize=%d", c.VolumeSize),
		fmt.Sprintf("-csi.testvolumeexpandsize=%d", c.VolumeSize+c.VolumeSize/2),
		"-csi.testvolumeaccesstype=mount",
		"-ginkgo.junit-report=" + report,
		"-ginkgo.no-color",
	}
	if c.Block {
		arguments = append(arguments, "-csi.testvolumeaccesstype=block")
	}
	if c.Attach {
		arguments = append(arguments, "-csi.testnodevolumeattachlimit")
	}
	if len(c.Parameters) > 0 {
		file := filepath.Join(dir, "parameters.yaml")
		text, err := yaml.Marshal(c.Parameters)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return nil, err
		}
		arguments = append(arguments, "-csi.testvolumeparameters="+file)
	}
	output, err := os.Create(suiteLog(dir))
	if err != nil {
		return nil, err
	}
	defer output.Close()
	command := exec.CommandContext(ctx, program, arguments...)
	command.Stdout, command.Stderr = output, output
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runError := command.Run()
	text, err := os.ReadFile(report)
	if err != nil {
		return nil, fmt.Errorf("the suite left no report (%w); it ended with: %v", err, runError)
	}
	return parseReport(text)
}

func stagingPath(dir string) string { return filepath.Join(dir, "staging") }
func suiteLog(dir string) string    { return filepath.Join(dir, "suite.log") }
