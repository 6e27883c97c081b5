package cluster

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Kubectl runs kubectl with this input and returns what it prints.
func (c *Cluster) Kubectl(input string, arguments ...string) (string, error) {
	return Output(c.client(append([]string{"kubernetes", "kubectl"}, arguments...)...), input)
}

// Helm runs helm and returns what it prints.
func (c *Cluster) Helm(arguments ...string) (string, error) {
	return Output(c.client(append([]string{"helm"}, arguments...)...), "")
}

// client is a command that sees the machine's files and the node's network.
func (c *Cluster) client(arguments ...string) *exec.Cmd {
	arguments[0] = filepath.Join(c.bin, arguments[0])
	command := exec.Command("nsenter", append([]string{"--net", "--target", strconv.Itoa(initPID(c.dir))}, arguments...)...)
	command.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(c.dir, "pki", "admin.conf"), "HOME="+c.dir)
	return command
}

// Output runs a command with this input; its error holds what the command says.
func Output(command *exec.Cmd, input string) (string, error) {
	var stdout, stderr bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := command.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", readable(command.Args), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// readable is a command line without what it takes to get to the node.
func readable(arguments []string) string {
	for i, argument := range arguments {
		if argument == "join" || filepath.Base(argument) == "kubernetes" {
			return strings.Join(arguments[i+1:], " ")
		}
	}
	return strings.Join(arguments, " ")
}
