// kstatus computes the kstatus of Kubernetes objects, as Flux does.
//
// It reads objects as lines of JSON from stdin and prints the status and the message of each as a line of JSON.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	decoder, encoder := json.NewDecoder(in), json.NewEncoder(out)
	for {
		// UnmarshalJSON decodes integers as int64, as Compute expects; encoding/json would decode them as float64.
		var line json.RawMessage
		if err := decoder.Decode(&line); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(line); err != nil {
			return err
		}
		result, err := status.Compute(object)
		if err != nil {
			return err
		}
		output := map[string]string{"status": result.Status.String(), "message": result.Message}
		if err := encoder.Encode(output); err != nil {
			return err
		}
	}
}
