package artifacts

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// driverImage writes the driver's image as users would build it, unless the same one is kept from an earlier run.
func driverImage(repository, kept, name, file string) error {
	binary := os.Getenv("ORLOP_BIN")
	if binary == "" {
		binary = filepath.Join(repository, "target/release/orlop")
	}
	inputs, err := filepath.Glob(filepath.Join(repository, "deploy/image/*"))
	if err != nil {
		return err
	}
	key, err := fingerprint(append(inputs, binary)...)
	if err != nil {
		return err
	}
	archive := filepath.Join(kept, "orlop.tar")
	was, _ := os.ReadFile(archive + ".of")
	if string(was) != key+name {
		_ = os.Remove(archive + ".of")
		command := exec.Command(filepath.Join(repository, "deploy/image/build.sh"), archive)
		command.Env = append(os.Environ(), "ORLOP_BIN="+binary, "IMAGE="+name)
		command.Stdout, command.Stderr = os.Stdout, os.Stderr
		if err := command.Run(); err != nil {
			return fmt.Errorf("deploy/image/build.sh: %w", err)
		}
		if err := os.WriteFile(archive+".of", []byte(key+name), 0o644); err != nil {
			return err
		}
	}
	return copyFile(archive, file)
}

// fingerprint is of the contents of files.
func fingerprint(files ...string) (string, error) {
	sum := sha256.New()
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(sum, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}
