{{/* No rights at all: they talk to the API server and to the driver's socket, which is root's. */}}
{{- define "orlop.sidecarSecurity" -}}
securityContext:
  runAsUser: 0
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
  seccompProfile:
    type: RuntimeDefault
  {{- if .Values.selinux }}
  seLinuxOptions:
    type: spc_t
  {{- end }}
{{- end }}

{{- define "orlop.sidecarResources" -}}
resources:
  {{- toYaml (.sidecar.resources | default .root.Values.sidecarResources) | nindent 2 }}
{{- end }}

{{- define "orlop.provisioner" -}}
- name: csi-provisioner
  image: {{ .Values.sidecars.provisioner.image }}
  args:
    - --v=2
    - --csi-address=/csi/csi.sock
    # Each node makes and deletes its own volumes, and tells its own room.
    - --node-deployment
    - --enable-capacity
    # The DaemonSet owns what is told, so it goes with it, and not with every restart of a pod.
    - --capacity-ownerref-level=1
    - --capacity-poll-interval={{ .Values.capacityPollInterval }}
    - --extra-create-metadata
    - --timeout={{ .Values.timeout }}
    - --worker-threads={{ .Values.sidecars.provisioner.workers }}
    - --kube-api-qps=20
    - --kube-api-burst=40
    - --kube-api-capacity-qps=5
    - --kube-api-capacity-burst=20
    {{- if not .Values.snapshots.enabled }}
    - --snapshot-orphan-sweep-interval=0
    {{- end }}
  env:
    - name: NODE_NAME
      valueFrom:
        fieldRef:
          fieldPath: spec.nodeName
    - name: NAMESPACE
      valueFrom:
        fieldRef:
          fieldPath: metadata.namespace
    - name: POD_NAME
      valueFrom:
        fieldRef:
          fieldPath: metadata.name
  volumeMounts:
    - name: socket
      mountPath: /csi
  {{- include "orlop.sidecarSecurity" . | nindent 2 }}
  {{- include "orlop.sidecarResources" (dict "root" . "sidecar" .Values.sidecars.provisioner) | nindent 2 }}
{{- end }}

{{- define "orlop.snapshotter" -}}
- name: csi-snapshotter
  image: {{ .Values.sidecars.snapshotter.image }}
  args:
    - --v=2
    - --csi-address=/csi/csi.sock
    {{- if not (include "orlop.isSingle" .) }}
    # Each node takes its own snapshots: those that snapshot-controller has labelled with its name.
    - --node-deployment
    {{- end }}
    {{- if not .Values.snapshots.groups }}
    - --feature-gates=CSIVolumeGroupSnapshot=false
    {{- end }}
    - --extra-create-metadata
    - --timeout={{ .Values.timeout }}
    - --worker-threads={{ .Values.sidecars.snapshotter.workers }}
  {{- if not (include "orlop.isSingle" .) }}
  env:
    - name: NODE_NAME
      valueFrom:
        fieldRef:
          fieldPath: spec.nodeName
  {{- end }}
  volumeMounts:
    - name: socket
      mountPath: /csi
  {{- include "orlop.sidecarSecurity" . | nindent 2 }}
  {{- include "orlop.sidecarResources" (dict "root" . "sidecar" .Values.sidecars.snapshotter) | nindent 2 }}
{{- end }}

{{- define "orlop.resizer" -}}
- name: csi-resizer
  image: {{ .Values.sidecars.resizer.image }}
  args:
    - --v=2
    - --csi-address=/csi/csi.sock
    {{- if not (include "orlop.isSingle" .) }}
    # One of them works, for all nodes; an API server that is slow for a while is no reason for another one.
    - --leader-election
    - --leader-election-lease-duration=30s
    - --leader-election-renew-deadline=20s
    # It would ask the driver beside it, which has only its own node's volumes.
    - --feature-gates=VolumeAttributesClass=false
    {{- end }}
    - --timeout={{ .Values.timeout }}
    - --workers={{ .Values.sidecars.resizer.workers }}
  volumeMounts:
    - name: socket
      mountPath: /csi
  {{- include "orlop.sidecarSecurity" . | nindent 2 }}
  {{- include "orlop.sidecarResources" (dict "root" . "sidecar" .Values.sidecars.resizer) | nindent 2 }}
{{- end }}

{{- define "orlop.registrar" -}}
- name: node-driver-registrar
  image: {{ .Values.sidecars.registrar.image }}
  args:
    - --v=2
    - --csi-address=/csi/csi.sock
    - --kubelet-registration-path={{ .Values.kubeletDir }}/plugins/{{ .Values.driverName }}/csi.sock
    - --timeout=10s
    - --http-endpoint=:9809
  ports:
    - name: registrar
      containerPort: 9809
  livenessProbe:
    httpGet:
      path: /healthz
      port: registrar
    initialDelaySeconds: 10
    periodSeconds: 30
    timeoutSeconds: 10
    failureThreshold: 5
  volumeMounts:
    - name: socket
      mountPath: /csi
    - name: registration
      mountPath: /registration
  {{- include "orlop.sidecarSecurity" . | nindent 2 }}
  {{- include "orlop.sidecarResources" (dict "root" . "sidecar" .Values.sidecars.registrar) | nindent 2 }}
{{- end }}

{{- define "orlop.livenessprobe" -}}
- name: liveness-probe
  image: {{ .Values.sidecars.livenessprobe.image }}
  args:
    - --v=2
    - --csi-address=/csi/csi.sock
    - --health-port=9808
    - --probe-timeout=5s
  volumeMounts:
    - name: socket
      mountPath: /csi
  {{- include "orlop.sidecarSecurity" . | nindent 2 }}
  {{- include "orlop.sidecarResources" (dict "root" . "sidecar" .Values.sidecars.livenessprobe) | nindent 2 }}
{{- end }}
