// The programs of a Kubernetes cluster and its etcd in one binary, for the end-to-end tests where no
// container engine and no registry exist. Which program it is, its name or its first argument says:
// `kubernetes kubelet --config=...`.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	_ "time/tzdata" // for CronJobs with a time zone

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// Made on demand: each registers flags when it is made.
var programs = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"kubectl":                 kubectl.NewDefaultKubectlCommand,
}

func main() {
	run()
	if len(os.Args) > 1 {
		os.Args = os.Args[1:]
		run()
	}
	fmt.Fprintln(os.Stderr, "usage: kubernetes etcd|kube-apiserver|kube-controller-manager|kube-scheduler|kubelet|kubectl [FLAG...]")
	os.Exit(2)
}

// run becomes the program that the first word of the command line names, and returns if it names none.
func run() {
	name := filepath.Base(os.Args[0])
	if name == "etcd" {
		// It reads its flags by itself, and is no cobra command.
		etcdmain.Main(os.Args)
		os.Exit(0)
	}
	if program, ok := programs[name]; ok {
		os.Exit(cli.Run(program()))
	}
}
