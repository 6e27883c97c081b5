package artifacts

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Names of the images that only tests use.
const (
	PauseImage   = "orlop.test/pause:1" // what holds a pod's namespaces
	BusyboxImage = "orlop.test/busybox:1"
)

const busybox = "/bin/busybox"

// Images writes an archive of each image that a cluster with Orlop needs into a directory: under the names that the
// chart asks for, so that it is installed as it is.
func Images(repository, bin, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox: %w", err)
	}
	// It is itself one of them.
	links := slices.DeleteFunc(strings.Fields(string(applets)), func(name string) bool { return name == path.Base(busybox) })
	images := []Image{
		{PauseImage, busybox, busybox, nil, []string{busybox, "sleep", "infinity"}},
		{BusyboxImage, busybox, busybox, links, []string{"/bin/sh"}},
	}
	names, err := chartImages(repository, bin)
	if err != nil {
		return err
	}
	for _, name := range names {
		program := path.Base(strings.Split(name, ":")[0])
		if program == "orlop" {
			if err := driverImage(repository, filepath.Dir(bin), name, filepath.Join(dir, "orlop.tar")); err != nil {
				return err
			}
			continue
		}
		images = append(images, Image{name, filepath.Join(bin, program), "/bin/" + program, nil, []string{"/bin/" + program}})
	}
	for _, image := range images {
		archive, err := image.Archive()
		if err != nil {
			return fmt.Errorf("image %s: %w", image.Name, err)
		}
		file := path.Base(strings.Split(image.Name, ":")[0]) + ".tar"
		if err := os.WriteFile(filepath.Join(dir, file), archive, 0o644); err != nil {
			return err
		}
	}
	return nil
}

var imageLine = regexp.MustCompile(`(?m)^\s*(?:- )?image: "?([^"\s]+)"?\s*$`)

// chartImages are the images that the chart names when it is installed as the tests do.
func chartImages(repository, bin string) ([]string, error) {
	command := exec.Command(filepath.Join(bin, "helm"), "template", "orlop", filepath.Join(repository, "deploy/helm/orlop"),
		"--values", filepath.Join(repository, "tests/kubernetes/suite/values.yaml"))
	command.Stderr = os.Stderr
	text, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("helm template: %w", err)
	}
	seen := map[string]bool{}
	var names []string
	for _, match := range imageLine.FindAllStringSubmatch(string(text), -1) {
		if !seen[match[1]] {
			seen[match[1]] = true
			names = append(names, match[1])
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("the chart names no image")
	}
	return names, nil
}
